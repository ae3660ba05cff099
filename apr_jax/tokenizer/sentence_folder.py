"""`tokenizer.model` in the folder of a model, with the words added by the files beside it.

A chat model often has the SentencePiece model of its base: its turn marks and its end of a text are listed in
`added_tokens.json`, `special_tokens_map.json` and `tokenizer_config.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from apr_jax.tokenizer.huggingface import content, read_json, read_template
from apr_jax.tokenizer.sentence import Tokenizer

_ROLES = ("bos", "eos", "pad")
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


def from_folder(folder: Path) -> Tokenizer:
    """Read `tokenizer.model` and the files that add words to it.

    Raises:
        FileNotFoundError: there is no `tokenizer.model`.
        ValueError: a file is not of the format that its name implies, or an added word contradicts the model; named.
    """
    path = folder / "tokenizer.model"
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    fields: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        fields |= read_json(folder / name) if (folder / name).is_file() else {}
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    decoder = fields.get("added_tokens_decoder") or {}
    ids = added | {token["content"]: int(i) for i, token in decoder.items()}
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{folder}: several added words have one id: {ids}")
    special = {token["content"] for token in decoder.values() if token.get("special")}
    special |= {content(token) for token in fields.get("additional_special_tokens") or ()}
    special |= {content(fields.get(f"{role}_token")) for role in (*_ROLES, "unk")}
    _add(proto, ids, special, folder)
    _name_roles(proto, fields, folder)
    if fields.get("add_prefix_space") is not None:
        proto.normalizer_spec.add_dummy_prefix = bool(fields["add_prefix_space"])
    return Tokenizer(proto.SerializeToString(), read_template(folder), bool(fields.get("legacy")))


def _add(proto, ids: Mapping[str, int], special: set[str | None], folder: Path) -> None:
    """Put words at their ids; ids in between without a word become unused."""
    places = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    ids = {word: places[word] for word in special if word in places} | ids
    for word, i in sorted(ids.items(), key=lambda item: item[1]):
        while len(proto.pieces) <= i:
            proto.pieces.add(piece=f"<unused {len(proto.pieces)}>", score=0.0, type=_Piece.UNUSED)
        piece, place = proto.pieces[i], places.setdefault(word, i)
        if place != i or (piece.piece != word and piece.type in (_Piece.NORMAL, _Piece.BYTE)):
            raise ValueError(
                f"{folder}: the added word {word!r} has id {i}, where tokenizer.model has {piece.piece!r}, and {word!r} at "
                f"{place}; do the files belong to one model?"
            )
        piece.piece = word
        if piece.type not in (_Piece.UNKNOWN, _Piece.CONTROL):
            piece.type = _Piece.CONTROL if word in special else _Piece.USER_DEFINED
    proto.trainer_spec.vocab_size = len(proto.pieces)


def _name_roles(proto, fields: Mapping[str, Any], folder: Path) -> None:
    """Set the words that open and end a text and pad, from the files, else from the model."""
    places = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    for role in _ROLES:
        if f"{role}_token" not in fields:
            continue
        word = content(fields[f"{role}_token"])
        if word is not None and word not in places:
            raise ValueError(
                f"{folder}: {role}_token is {word!r}, which neither tokenizer.model nor added_tokens.json has; give it an id"
            )
        setattr(proto.trainer_spec, f"{role}_piece", word or "")
        setattr(proto.trainer_spec, f"{role}_id", places.get(word, -1))
