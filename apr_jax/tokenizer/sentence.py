"""SentencePiece tokenizers: the small vocabularies trained here, and the `tokenizer.model` of pretrained models."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from apr_jax.tokenizer.codec import ChatTemplate, TextCodec, controls, is_plain, unmatchable

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
CONTROL_WORDS = (
    "<spawn>", "<wait>", "<result>", "<join>", "<end>", "<goal>", "<go>", "<node>", "<sub>", "<exit>"
)  # fmt: skip
SIGNS = "+-*/=,:;"
_BRACKETS = re.compile(r"<[^<>\s]+>")


class Tokenizer(TextCodec):
    """A SentencePiece model in which control words are whole in `encode` and visible in `decode`.

    Control words are the model's control symbols and its user-defined symbols that are not ordinary text (`is_plain` of
    `codec`). `decode` does not show the symbols of padding and unknown ids: padding gives "", unknown gives " ⁇ ".

    Args:
        model: a serialised SentencePiece model.
        chat_template: template from messages to text; SentencePiece models do not contain one.
        legacy: if texts start with a space, text after a control word does too (`legacy` of Llama's tokenizers).

    Raises:
        ValueError: `model` is not a SentencePiece model, or has no id that ends a text.
    """

    def __init__(self, model: bytes, chat_template: ChatTemplate | None = None, legacy: bool = False):
        self.model, self.chat_template, self.legacy = model, chat_template, legacy
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        except (RuntimeError, DecodeError) as error:
            raise ValueError(f"these {len(model)} bytes are not a SentencePiece model: {error}") from error
        ids = {piece.piece: i for i, piece in enumerate(proto.pieces) if _is_control(piece)}
        self.controls = controls(ids)
        self.marks = frozenset(i for i in ids.values() if proto.pieces[i].type == proto.pieces[i].CONTROL)
        plain = _without(proto, ids)
        self._plain = sentencepiece.SentencePieceProcessor(model_proto=plain.SerializeToString())
        self._continuing = self._plain
        if proto.normalizer_spec.add_dummy_prefix:
            plain.normalizer_spec.add_dummy_prefix = False
            self._continuing = sentencepiece.SentencePieceProcessor(model_proto=plain.SerializeToString())
        known, names = {piece.piece: i for i, piece in enumerate(proto.pieces)}, proto.trainer_spec
        # By name: SentencePiece forgets the number of a special that was redefined as a user symbol, as `train` does.
        self.bos, self.eos, self.pad = map(known.get, (names.bos_piece, names.eos_piece, names.pad_piece))
        if self.eos is None:
            raise ValueError(
                f"the SentencePiece model has no piece {names.eos_piece!r} to end a text; train it with one"
            )
        self.table = [b"" if i == self.pad else _bytes(piece) for i, piece in enumerate(proto.pieces)]
        self.pad = self.eos if self.pad is None else self.pad
        opened = "always" if legacy else "first"
        self.space = opened if proto.normalizer_spec.add_dummy_prefix else "never"
        self._finds_controls = all(
            proto.pieces[i].type == proto.pieces[i].USER_DEFINED or i == self.pad for i in ids.values()
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a file written by `save`; raises FileNotFoundError, or ValueError if it is no SentencePiece model."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the model to a file."""
        Path(path).write_bytes(self.model)

    def _files(self) -> dict[str, bytes]:
        specials = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "legacy": self.legacy}
        config |= {name: self.piece(i) for name, i in specials.items() if i is not None}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template.source
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        return {"tokenizer.model": self.model, "tokenizer_config.json": text.encode()}

    def with_control_words(self, words: Sequence[str]) -> "Tokenizer":
        """The same model in which each of `words` is one id; raises ValueError for a word without angle brackets."""
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        known = {piece.piece: piece for piece in proto.pieces}
        for word in dict.fromkeys(words):
            if not _BRACKETS.fullmatch(word):
                raise ValueError(f"control word {word!r}: control words are written in angle brackets, as in '<spawn>'")
            piece = known.get(word) or proto.pieces.add(piece=word, score=0.0)
            if not _is_control(piece):
                piece.type = piece.USER_DEFINED
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return Tokenizer(proto.SerializeToString(), self.chat_template, self.legacy)

    def piece(self, i: int) -> str:
        """The symbol of one id in the vocabulary."""
        return self._processor.id_to_piece(int(i))

    def id(self, word: str) -> int:
        """Id of a symbol that is one id.

        Raises:
          ValueError: the vocabulary has no such symbol.
        """
        i = self._processor.piece_to_id(word)
        if i == self._processor.unk_id() and word != self._processor.id_to_piece(i):
            raise ValueError(
                f"{word!r} is not one id of this vocabulary of {self.size} symbols; train it with that word"
            )
        return i

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Ids of trusted text, in which control words become their ids; no token is added at either end."""
        if self._finds_controls and self.space == "never":
            return self._processor.encode(text)  # the same ids, several times faster
        return super().encode(text, continues)

    def encode_text(self, text: str, continues: bool = False) -> list[int]:
        """Ids of untrusted text, in which control words stay text; see `TextCodec`."""
        return (self._continuing if continues else self._plain).encode(text)


def _is_control(piece) -> bool:
    return piece.type == piece.CONTROL or (piece.type == piece.USER_DEFINED and not is_plain(piece.piece))


def _bytes(piece) -> bytes:
    if piece.type == piece.BYTE:
        return bytes([int(piece.piece[3:5], 16)])
    return (" ⁇ " if piece.type == piece.UNKNOWN else piece.piece.replace("▁", " ")).encode()


def _without(proto, words: Mapping[str, int]):
    """The model with the given symbols made unmatchable; ids do not change."""
    plain = sentencepiece_model_pb2.ModelProto()
    plain.CopyFrom(proto)
    for i in words.values():
        if plain.pieces[i].type == plain.pieces[i].USER_DEFINED:
            plain.pieces[i].piece, plain.pieces[i].type = unmatchable(i), plain.pieces[i].UNUSED
    return plain


def train(
    texts: Iterable[str],
    control_words: Sequence[str] = CONTROL_WORDS,
    path: str | Path | None = None,
    characters: str = "",
) -> Tokenizer:
    """A vocabulary in which every control word and every character is one id.

    Ids: <pad> <unk> <s> </s>, then `control_words`, then `characters`, each in the order given, then the other
    characters of `texts` in Unicode order. The ids therefore depend on the set of characters, not on their frequencies. Text is
    not changed: no normalisation, no dummy prefix, white space kept.

    Args:
      texts: texts with the characters of the vocabulary; control words in them are skipped.
      control_words: words that stay whole.
      path: path of the file to save the model to; None: not saved.
      characters: characters that come first, whether they occur or not.

    Raises:
      ValueError: there is no text to train on, a symbol is listed twice, or SentencePiece does not keep a symbol as one id
        (a new line, for instance).
    """
    words = [word for word in control_words if word not in SPECIALS]
    found: set[str] = set()
    for text in texts:
        for word in (*SPECIALS, *words):
            text = text.replace(word, "")
        found.update(text)
    symbols = characters + "".join(sorted(found - set(characters)))
    if not symbols or len({*words, *symbols}) != len(words) + len(symbols):
        raise ValueError(
            f"control words {words} and characters {symbols!r} must be distinct, with at least one character"
        )
    tokenizer = Tokenizer(_train_characters(words, symbols))
    expected = [*SPECIALS, *words, *(symbols.replace(" ", "▁"))]
    pieces = [tokenizer.piece(i) for i in range(tokenizer.size)]
    if pieces != expected:
        lost = sorted(set(expected) - set(pieces))
        raise ValueError(
            f"SentencePiece did not keep {lost} as single ids in order; leave these symbols out of the texts"
        )
    if path is not None:
        tokenizer.save(path)
    return tokenizer


def compact(whole: int = 199) -> Tokenizer:
    """The vocabulary of the compact Countdown format: specials, control words, numbers, digits and signs, one id each.

    Args:
      whole: numbers up to this one are single ids, larger numbers several ids; 9 writes all numbers digit by digit (32 ids).
    """
    if whole < 9:
        raise ValueError(f"whole is {whole}; at least 9 is needed, so that every digit has an id")
    return train((), [*CONTROL_WORDS, *map(str, range(whole + 1))], characters=SIGNS)


def _train_characters(words: Sequence[str], symbols: str) -> bytes:
    model = io.BytesIO()
    # SentencePiece orders characters by frequency, so each is given one count more than the next.
    corpus = (symbol * (len(symbols) - rank) for rank, symbol in enumerate(symbols))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus,
        model_writer=model,
        model_type="char",
        vocab_size=len(SPECIALS) + len(words) + len(symbols),
        hard_vocab_limit=False,
        # Redefined as user symbols, <s> and </s> are found in text and shown by decode like control words.
        user_defined_symbols=["<s>", "</s>", *words],
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="<pad>",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
