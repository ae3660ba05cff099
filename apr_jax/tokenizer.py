"""Text to token ids and back: SentencePiece behind an interface that other tokenizers can stand in for."""

import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
CONTROL_WORDS = (
    "<spawn>", "<wait>", "<result>", "<join>", "<end>", "<goal>", "<go>", "<node>", "<sub>", "<exit>"
)  # fmt: skip
SIGNS = "+-*/=,:;"


class TextCodec(Protocol):
    """What the rest of the code asks of a tokenizer."""

    @property
    def size(self) -> int:
        """Number of ids."""

    @property
    def pad(self) -> int:
        """Id of padding."""

    @property
    def bos(self) -> int:
        """Id that opens a text."""

    @property
    def eos(self) -> int:
        """Id that closes a text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control words in it become their ids, and nothing is added at either end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control words shown."""

    def id(self, word: str) -> int:
        """Id of a control word or another symbol that is one id; ValueError if it is not."""


class Tokenizer:
    """A SentencePiece model in which control words are whole in `encode` and visible in `decode`.

    Padding and unknown ids are not shown by `decode` as text of their own: padding gives "", unknown gives " ⁇ ".

    Raises:
      ValueError: the model has no padding, opening or closing id.
    """

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pad, self.bos, self.eos = (self.id(word) for word in ("<pad>", "<s>", "</s>"))

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads what `save` wrote; raises FileNotFoundError, or ValueError if it is no SentencePiece model."""
        model = Path(path).read_bytes()
        try:
            return cls(model)
        except RuntimeError as error:
            raise ValueError(f"{path} ({len(model)} bytes) is not a SentencePiece model: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the model to a file."""
        Path(path).write_bytes(self._model)

    @property
    def size(self) -> int:
        """Number of ids; a model's vocabulary may be padded above it (`model.config.padded_vocabulary`)."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; `<s>` and `</s>` in it become their ids, and nothing is added at either end."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. An id that a padded model vocabulary has beyond this one is shown as `<unused 40>`."""
        groups = itertools.groupby(map(int, ids), lambda i: 0 <= i < self.size)
        return "".join(self._show(list(group), known) for known, group in groups)

    def _show(self, ids: list[int], known: bool) -> str:
        return self._processor.decode(ids) if known else "".join(f"<unused {i}>" for i in ids)

    def piece(self, i: int) -> str:
        """The symbol of one id, as it stands in the vocabulary."""
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


def train(
    texts: Iterable[str],
    control_words: Sequence[str] = CONTROL_WORDS,
    path: str | Path | None = None,
    characters: str = "",
) -> Tokenizer:
    """A vocabulary in which every control word and every character is one id.

    Ids: <pad> <unk> <s> </s>, then `control_words`, then `characters`, each in the order given, then the other
    characters of `texts` in Unicode order. So the ids depend on what occurs, not on how often. Text is taken as it is: no
    normalisation, no dummy prefix, white space kept.

    Args:
      texts: text in which characters are looked for; control words in it are skipped.
      control_words: words that stay whole.
      path: where to save the model, if anywhere.
      characters: characters that come first, whether they occur or not.

    Raises:
      ValueError: nothing to train on, a symbol listed twice, or one that SentencePiece does not keep as one id (a new
        line, for instance).
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
      whole: numbers up to this one are single ids, larger ones a few; 9 writes all numbers digit by digit (32 ids).
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
