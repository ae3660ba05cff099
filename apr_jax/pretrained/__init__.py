"""Language models of others: read from Hugging Face folders and GGUF files, changed a little, and given back."""

from apr_jax.pretrained.load import load_pretrained
from apr_jax.pretrained.save import save_pretrained
from apr_jax.pretrained.vocabulary import CONTROL_TAGS, add_control_tokens, with_control_words

__all__ = ["CONTROL_TAGS", "add_control_tokens", "load_pretrained", "save_pretrained", "with_control_words"]
