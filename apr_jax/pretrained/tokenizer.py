"""Loads the tokenizer of a model, in any of its formats."""

from pathlib import Path

from apr_jax import files
from apr_jax.pretrained.gguf.vocabulary import from_gguf
from apr_jax.tokenizer.codec import TextCodec
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer
from apr_jax.tokenizer.sentence import Tokenizer
from apr_jax.tokenizer.sentence_folder import from_folder


def load(path: str | Path) -> TextCodec:
    """Read a tokenizer.

    Args:
        path: a Hugging Face folder (`tokenizer.json` and `tokenizer_config.json`; or `tokenizer.model` and, if present, the
            files that add words to it), a GGUF file or any part of a split one, or a SentencePiece model.

    Raises:
        FileNotFoundError: `path` does not exist, or is a folder without a tokenizer.
        ValueError: a file is not of the format that its name implies.
    """
    path = files.local(path, "path")
    if path.suffix == ".gguf":
        return from_gguf(path)
    if path.is_file():
        return Tokenizer.from_file(path)
    if (path / "tokenizer.json").is_file():
        return HuggingFaceTokenizer.from_folder(path)
    if (path / "tokenizer.model").is_file():
        return from_folder(path)
    raise FileNotFoundError(
        f"{path}: no tokenizer there; a folder with tokenizer.json or tokenizer.model, a .gguf file or a SentencePiece "
        "model is needed"
    )


def check_fits(codec: TextCodec, vocabulary: int, model: str) -> None:
    """Refuse a tokenizer with more ids than rows of the model's embedding.

    Args:
        vocabulary: V, rows of the embedding.
        model: name of the model in the message.

    Raises:
        ValueError: the tokenizer has more ids; the message names both sizes.
    """
    if codec.size > vocabulary:
        raise ValueError(
            f"{model}: its embedding has {vocabulary} rows, the tokenizer has {codec.size} ids; take the tokenizer of this "
            "model, or enlarge the embedding when control words are added"
        )
