"""Pretrained language models: read from Hugging Face folders and GGUF files, given control words, and saved."""

from apr_jax.model.pretrained.load import load_pretrained
from apr_jax.model.pretrained.save import save_pretrained
from apr_jax.model.pretrained.vocabulary import CONTROL_TAGS, add_control_tokens, with_control_words

__all__ = ["CONTROL_TAGS", "add_control_tokens", "load_pretrained", "save_pretrained", "with_control_words"]
