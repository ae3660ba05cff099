"""GGUF files: header, tensors, tokenizer, and a writer."""
