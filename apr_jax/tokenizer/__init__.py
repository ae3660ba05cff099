"""Text to token ids and back: SentencePiece and Hugging Face tokenizers behind one interface."""

from apr_jax.tokenizer.codec import ChatTemplate, Controls, Stream, TextCodec
from apr_jax.tokenizer.sentence import CONTROL_WORDS, SIGNS, SPECIALS, Tokenizer, compact, train

__all__ = [
    "CONTROL_WORDS",
    "SIGNS",
    "SPECIALS",
    "ChatTemplate",
    "Controls",
    "Stream",
    "TextCodec",
    "Tokenizer",
    "compact",
    "train",
]
