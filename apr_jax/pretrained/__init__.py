"""Pretrained language models: loaded from Hugging Face folders and GGUF files, extended by control words, and saved again."""

from apr_jax.pretrained.load import is_pretrained, load_model, load_pretrained
from apr_jax.pretrained.save import save_pretrained
from apr_jax.pretrained.vocabulary import CONTROL_TAGS, add_control_tokens, with_control_words

__all__ = [
    "CONTROL_TAGS", "add_control_tokens", "is_pretrained", "load_model", "load_pretrained", "save_pretrained",
    "with_control_words",
]  # fmt: skip
