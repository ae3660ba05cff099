"""Tokenizers of the Hugging Face format (`tokenizer.json`), byte-level or with byte fallback.

Text is encoded by an encoder without any control words; our own code finds control words, in trusted text only. (The library
alone would also find `<think>` and other added tokens in a user's text.)
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from apr_jax.tokenizer.codec import ChatTemplate, Space, TextCodec, controls, is_plain, unmatchable

Json = dict[str, Any]
_SPECIALS = ("bos", "eos", "pad")
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
_NAMED_BYTE = re.compile("(?<=<)(?=0x[0-9A-F]{2}>)")


class HuggingFaceTokenizer(TextCodec):
    """A tokenizer of the `tokenizers` library.

    Args:
        definition: the content of `tokenizer.json`. An added token is a mark if it is special, and a control word if it is
            special or not ordinary text (`is_plain` of `codec`).
        config: the content of `tokenizer_config.json`: `bos_token`, `eos_token`, `pad_token`, and further fields for `save`
            to keep.
        chat_template: template from messages to text.
        name: name of the tokenizer in errors.

    Raises:
        ValueError: the library cannot read the definition, the decoder is neither byte-level nor byte fallback, or there is no
            `eos_token`.
    """

    def __init__(
        self,
        definition: Json,
        config: Mapping[str, Any],
        chat_template: ChatTemplate | None = None,
        name: str = "tokenizer.json",
    ):
        self.definition, self.config, self.chat_template, self._name = definition, config, chat_template, name
        added = {token["content"]: token for token in definition.get("added_tokens", ())}
        words = {word: token for word, token in added.items() if _is_control(token)}
        self.controls = controls(
            {word: token["id"] for word, token in words.items()},
            *([word for word, token in words.items() if token.get(side)] for side in ("lstrip", "rstrip")),
        )
        self.marks = frozenset(token["id"] for token in added.values() if token.get("special"))
        vocabulary = _vocabulary(definition, name)
        self._pieces = vocabulary | {word: token["id"] for word, token in added.items()}
        self.space = _space(definition)
        plain = plain_definition(definition)
        self._plain = _read(plain, name)
        model = definition["model"]
        self._takes_pieces_whole = bool(
            model.get("byte_fallback") and (model.get("type") == "Unigram" or model.get("ignore_merges"))
        )
        self._continuing = self._plain if self.space == "never" else _read(_without_space(plain), name)
        words = {special: content(config.get(f"{special}_token")) for special in _SPECIALS}
        if words["eos"] is None:
            raise ValueError(f"{name}: eos_token is missing in tokenizer_config.json; name the token that ends a text")
        self.bos, eos, pad = (None if words[special] is None else self.id(words[special]) for special in _SPECIALS)
        self.eos, self.pad = eos, eos if pad is None else pad
        self.table = _table(vocabulary, added, definition, name)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "HuggingFaceTokenizer":
        """Read `tokenizer.json`, `tokenizer_config.json` and, if present, `added_tokens.json` and `chat_template.jinja`.
        Words of the other files that `tokenizer.json` lacks are added, as in transformers.

        Raises:
            FileNotFoundError: `tokenizer.json` or `tokenizer_config.json` is missing.
            ValueError: a file is not JSON, or see the class.
        """
        folder = Path(folder)
        definition, config = (read_json(folder / file) for file in ("tokenizer.json", "tokenizer_config.json"))
        added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        tokens = [{"id": i, "content": word} for word, i in added.items()]
        tokens += [{**token, "id": int(i)} for i, token in (config.get("added_tokens_decoder") or {}).items()]
        known = {token["content"] for token in definition.get("added_tokens", ())}
        new = {token["content"]: _FLAGS | token for token in tokens if token["content"] not in known}
        definition["added_tokens"] = [*definition.get("added_tokens", ()), *new.values()]
        return cls(definition, config, read_template(folder), str(folder / "tokenizer.json"))

    def save(self, path: str | Path) -> None:
        """Write a folder that `from_folder` and `transformers` read; the same as `save_folder`."""
        self.save_folder(path)

    def _files(self) -> dict[str, bytes]:
        specials = {f"{name}_token": content(self.config.get(f"{name}_token")) for name in _SPECIALS}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        config |= {name: word for name, word in specials.items() if word is not None}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template.source
        contents = {"tokenizer.json": self.definition, "tokenizer_config.json": config}
        return {
            file: (json.dumps(fields, ensure_ascii=False, indent=2) + "\n").encode()
            for file, fields in contents.items()
        }

    def with_control_words(self, words: Sequence[str]) -> "HuggingFaceTokenizer":
        """The same tokenizer in which each of `words` is one id; new ids follow the old ones, in the order given.

        Raises:
            ValueError: a word is ordinary text, which a user could write.
        """
        # Not special either: `transformers` shows them too where it skips special tokens, and whoever reads threads needs them.
        definition, size = copy.deepcopy(self.definition), self.size
        for word in dict.fromkeys(words):
            if word in self.controls.ids:
                continue
            if is_plain(word):
                raise ValueError(f"control word {word!r} is ordinary text; write it as a tag, as in '<{word.strip()}>'")
            i = self._pieces.get(word, size)
            size += i == size
            definition.setdefault("added_tokens", []).append({"id": i, "content": word, **_FLAGS})
        return HuggingFaceTokenizer(definition, self.config, self.chat_template, self._name)

    def id(self, word: str) -> int:
        """Id of a symbol; raises ValueError if the vocabulary has no such symbol."""
        if word not in self._pieces:
            raise ValueError(f"{self._name}: {word!r} is not one id of its vocabulary; add it by with_control_words")
        return self._pieces[word]

    def encode_text(self, text: str, continues: bool = False) -> list[int]:
        """Ids of untrusted text, in which control words stay text; see `TextCodec`."""
        # Where the library would take the text `<0x41>` for the piece that stands for a byte, it is shown it in two.
        stretches = _NAMED_BYTE.split(text) if self._takes_pieces_whole else [text]
        ids: list[int] = []
        for i, stretch in enumerate(stretches):
            encoder = self._continuing if continues or i else self._plain
            ids += encoder.encode(stretch, add_special_tokens=False).ids
        return ids


def _is_control(token: Json) -> bool:
    return bool(token.get("special")) or not is_plain(token["content"])


def _is_word(token: Json, definition: Json) -> bool:
    """Whether an added token is ordinary text that the library can find.

    In a byte-level vocabulary the letter `ö` is the name of the byte 0xF6, which the library would take for an added `ö`.
    """
    word = token["content"]
    names_byte = not word.isascii() and word in byte_letters() and word in definition["model"]["vocab"]
    return not _is_control(token) and not (names_byte and _is_byte_level(definition))


def _is_byte_level(definition: Json) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(definition.get("decoder")))


def plain_definition(definition: Json) -> Json:
    """A definition without control words: none is an added token, and the model itself cannot produce one."""
    added = definition.get("added_tokens", ())
    plain = {**definition, "post_processor": None, "truncation": None, "padding": None}
    plain["added_tokens"] = [token for token in added if _is_word(token, definition)]
    new = {token["content"]: unmatchable(token["id"]) for token in added if _is_control(token)}
    model = {**definition["model"]}
    # The library numbers added words as they come, unless its vocabulary has them.
    words = {token["content"]: token["id"] for token in plain["added_tokens"]}
    if isinstance(model["vocab"], dict):
        model["vocab"] = words | {new.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:
        model["vocab"] = _with_words([[new.get(piece, piece), score] for piece, score in model["vocab"]], words)
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & new.keys()]
    if model.get("unk_token") is not None:
        model["unk_token"] = new.get(model["unk_token"], model["unk_token"])
    return {**plain, "model": model}


def _with_words(pieces: list[list[Any]], words: Mapping[str, int]) -> list[list[Any]]:
    """Pieces with scores, followed by `words` at their ids, with the worst scores so that only added tokens match them."""
    worst = min(score for _, score in pieces)
    ids = {i: word for word, i in words.items() if i >= len(pieces)}
    behind = range(len(pieces), max(ids, default=-1) + 1)
    return [*pieces, *([ids.get(i, unmatchable(i)), worst] for i in behind)]


def _vocabulary(definition: Json, name: str) -> dict[str, int]:
    model = definition.get("model", {})
    if model.get("type", "BPE") not in ("BPE", "Unigram") or "vocab" not in model:
        raise ValueError(f"{name}: model type {model.get('type')!r}; BPE and Unigram vocabularies can be read")
    vocabulary = model["vocab"]
    return dict(vocabulary) if isinstance(vocabulary, dict) else {piece: i for i, (piece, _) in enumerate(vocabulary)}


def _read(definition: Json, name: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{name}: the tokenizers library cannot read it: {error}") from error


def _parts(component: Json | None) -> list[Json]:
    """A component of a definition as a flat list, with sequences flattened."""
    if component is None:
        return []
    inner = next((component[key] for key in ("decoders", "normalizers", "pretokenizers") if key in component), None)
    return [component] if inner is None else [part for item in inner for part in _parts(item)]


def _without_space(definition: Json) -> Json:
    """The definition, changed so that it inserts no space before text."""

    def without(component: Json) -> Json | None:
        if component["type"] == "Prepend":
            return None
        changes: Json = {
            "Metaspace": {"prepend_scheme": "never", "add_prefix_space": False},
            "ByteLevel": {"add_prefix_space": False},
        }
        for key in ("normalizers", "pretokenizers"):
            if key in component:
                parts = map(without, component[key])
                return {**component, key: [part for part in parts if part is not None]}
        return component | changes.get(component["type"], {})

    parts = {key: definition.get(key) for key in ("normalizer", "pre_tokenizer")}
    return definition | {key: part and without(part) for key, part in parts.items()}


def _table(vocabulary: Mapping[str, int], added: Mapping[str, Json], definition: Json, name: str) -> list[bytes]:
    """The bytes of every id by the decoder of the definition; the bytes of added words are their own text."""
    kinds = {part["type"] for part in _parts(definition.get("decoder"))}
    if _is_byte_level(definition):
        letters = byte_letters()
        show = lambda piece: b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in piece)
    elif kinds & {"ByteFallback", "Metaspace"}:
        fallback = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)} if "ByteFallback" in kinds else {}
        show = lambda piece: fallback.get(piece) or piece.replace("▁", " ").encode()
    else:
        raise ValueError(
            f"{name}: decoder {sorted(kinds) or None}; ByteLevel, ByteFallback and Metaspace decoders can be read"
        )
    words = {token["id"]: word for word, token in added.items()}
    table = [f"<unused {i}>".encode() for i in range(max([*vocabulary.values(), *words]) + 1)]
    for piece, i in vocabulary.items():
        table[i] = show(piece)
    for i, word in words.items():
        # If the vocabulary writes spaces as U+2581, added ordinary words do too; a letter that names a byte stands for the byte.
        spelt = vocabulary.get(word) == i and len(word) == 1 if _is_byte_level(definition) else True
        table[i] = show(word) if spelt and not _is_control(added[word]) else word.encode()
    return table


def byte_letters() -> dict[str, int]:
    """The printable letter that stands for each byte in byte-level vocabularies (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _space(definition: Json) -> Space:
    """The places where the tokenizer inserts a space before text."""
    for part in _parts(definition.get("pre_tokenizer")):
        if part["type"] == "Metaspace":
            return part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
        if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            return "always"
    return "always" if any(part["type"] == "Prepend" for part in _parts(definition.get("normalizer"))) else "never"


def content(token: str | Json | None) -> str | None:
    """The word of a token in `tokenizer_config.json`, where a token is a text or a dict with flags."""
    return token["content"] if isinstance(token, dict) else token


def read_json(path: Path) -> Json:
    """The contents of a JSON file; raises FileNotFoundError, or ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); was its copy or download cut off?") from error


def read_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a folder, from its own file or `tokenizer_config.json`; of several, the one named "default"."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), str(file))
    source = read_json(settings).get("chat_template") if settings.is_file() else None
    if isinstance(source, list):
        source = {item["name"]: item["template"] for item in source}.get("default")
    return None if source is None else ChatTemplate(source, f"chat_template of {settings}")
