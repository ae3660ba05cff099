"""The tokenizer of a GGUF file, as a Hugging Face definition or a SentencePiece model.

A GGUF file holds the vocabulary and the *name* of a pre-tokenizer; llama.cpp defines the names (`src/llama-vocab.cpp`). The
definitions here are those of the models' own `tokenizer.json` files.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from sentencepiece import sentencepiece_model_pb2

from apr_jax.pretrained.gguf.header import read_headers
from apr_jax.tokenizer.codec import ChatTemplate, TextCodec
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer, Json
from apr_jax.tokenizer.sentence import Tokenizer

_CONTROL, _USER_DEFINED, _UNUSED = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def from_gguf(path: str | Path) -> TextCodec:
    """Build the tokenizer of a GGUF file, chat template included; `path` may be any part of a split model.

    Raises:
        FileNotFoundError: there is no such file, or a part is missing.
        ValueError: not a GGUF file, or the kind of vocabulary or pre-tokenizer is unknown; the message names the known kinds.
    """
    path, start = Path(path), "tokenizer."
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file at {path}")
    try:
        metadata = read_headers(path)[0].metadata
    except ValueError as error:
        raise ValueError(f"{path} is not a whole GGUF file: {error}") from error
    name = str(path)
    facts = {field.removeprefix(start): value for field, value in metadata.items() if field.startswith(start)}
    source = facts.get("chat_template")
    template = None if source is None else ChatTemplate(source, f"tokenizer.chat_template of {name}")
    kind = facts.get("ggml.model")
    if kind == "gpt2":
        words = {f"{role}_token": facts["ggml.tokens"][i] for role, i in _specials(facts).items()}
        return HuggingFaceTokenizer(byte_level(facts, name), words, template, name)
    if kind == "llama":
        return Tokenizer(pieces_with_scores(facts), template)
    raise ValueError(
        f"{name}: tokenizer.ggml.model is {kind!r}; gpt2 (byte-level BPE) and llama (SentencePiece) can be read"
    )


def byte_level(facts: Mapping[str, Any], name: str) -> Json:
    """The `tokenizer.json` of a byte-level BPE vocabulary.

    Args:
        facts: fields of the file, without `tokenizer.` in their names.
        name: name of the file in errors.
    """
    if not facts.get("ggml.pre"):
        warnings.warn(
            f"{name} does not say how text is cut before merging (tokenizer.ggml.pre is missing): it is cut by llama.cpp's "
            "rule for such files, which may not be the model's; convert the model anew, or take its tokenizer.json",
            stacklevel=2,
        )
    given = facts.get("ggml.pre") or "default"
    pre, known = _ALIASES.get(given, given), pre_tokenizers()
    if pre not in known:
        raise ValueError(f"{name}: tokenizer.ggml.pre is {pre!r}; known are {', '.join([*known, *_ALIASES])}")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = list(enumerate(zip(facts["ggml.tokens"], facts["ggml.token_type"], strict=True)))
    added = {piece: i for i, (piece, kind) in tokens if kind in (_CONTROL, _USER_DEFINED)}
    # If an added letter is also the name of a byte, the vocabulary needs the byte.
    ordinary = {piece: i for i, (piece, kind) in tokens if kind not in (_CONTROL, _USER_DEFINED, _UNUSED)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": piece, **flags, "special": kind == _CONTROL}
            for i, (piece, kind) in tokens
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": known[pre],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": added | ordinary,
            "merges": [merge.split(" ") for merge in facts["ggml.merges"]],
        },
    }


def pre_tokenizers() -> dict[str, Json]:
    """The pre-tokenizers, which cut text before merging, by llama.cpp's names."""
    bytes_and_words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

    def cut(*patterns: str) -> Json:
        flags = {"type": "Split", "behavior": "Isolated", "invert": False}
        splits = [{**flags, "pattern": {"Regex": pattern}} for pattern in patterns]
        return {"type": "Sequence", "pretokenizers": [*splits, {**bytes_and_words, "use_regex": False}]}

    digits = {"type": "Digits", "individual_digits": True}
    return {
        "default": cut(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        "gpt-2": bytes_and_words,
        "smollm": {"type": "Sequence", "pretokenizers": [digits, bytes_and_words]},
        "qwen2": cut(rf"{_WORDS}|\p{{N}}|{_REST}"),
        "llama-bpe": cut(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
    }


def pieces_with_scores(facts: Mapping[str, Any]) -> bytes:
    """The SentencePiece model of a vocabulary with scores (llama.cpp merges the best-scored pair, as its BPE does)."""
    proto = sentencepiece_model_pb2.ModelProto()
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = trainer.BPE, True
    trainer.vocab_size = len(facts["ggml.tokens"])
    columns = zip(facts["ggml.tokens"], facts["ggml.scores"], facts["ggml.token_type"], strict=True)
    for piece, score, kind in columns:
        proto.pieces.add(piece=piece, score=score, type=kind)
    for role, i in (_specials(facts) | {"unk": facts.get("ggml.unknown_token_id")}).items():
        if i is not None:
            setattr(trainer, f"{role}_piece", facts["ggml.tokens"][i])
            setattr(trainer, f"{role}_id", i)
    normalizer.name, normalizer.remove_extra_whitespaces = "identity", False
    normalizer.add_dummy_prefix = bool(facts.get("ggml.add_space_prefix", True))
    return proto.SerializeToString()


def _specials(facts: Mapping[str, Any]) -> dict[str, int]:
    """The ids of special tokens by their roles."""
    # In a chat model the end of a turn ends an answer; some files also name another token that ends whole texts.
    ends = "eot" if "chat_template" in facts and "ggml.eot_token_id" in facts else "eos"
    numbers = {"bos": "bos", "eos": ends, "pad": "padding"}
    found = {role: facts.get(f"ggml.{name}_token_id") for role, name in numbers.items()}
    return {role: i for role, i in found.items() if i is not None}
