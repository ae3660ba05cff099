"""GGUF files: their header, their tensors, the tokenizers that they carry, and writing one."""
