"""The interface of tokenizers: bytes of every id, control words, and text that never becomes a control word.

Every tokenizer is described by the bytes of its ids. Decoding is therefore the same for byte-level BPE, byte fallback and
characters, and decoding token by token gives exactly the same text as decoding all at once, for any sampled tokens.
"""

import abc
import codecs
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

Space = Literal["never", "first", "always"]
FOLDER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What belongs to the tokenizer in the folder of a model, whoever wrote it."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template from messages to text.

    Attributes:
        source: the Jinja source.
        name: name of the template in errors.
        variables: variables of the template besides the messages: `enable_thinking`, `date_string`, or a function
            `strftime_now` for templates that ask for the date (they do not see the clock). Not saved with a tokenizer.
    """

    source: str
    name: str
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Controls:
    """Words that are one id in trusted text: turn marks, thread tags.

    Attributes:
        ids: id of each word.
        left, right: words that swallow the white space on that side.
    """

    ids: Mapping[str, int]
    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()

    def __contains__(self, i: int) -> bool:
        return i in self._numbers

    @functools.cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(self.ids.values())

    @functools.cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """A pattern that finds control words, longest first; None if there are no control words."""
        words = sorted(self.ids, key=len, reverse=True)
        ends = [(r"\s*" * (word in self.left), r"\s*" * (word in self.right)) for word in words]
        alternatives = [f"{left}{re.escape(word)}{right}" for word, (left, right) in zip(words, ends, strict=True)]
        return re.compile("|".join(alternatives)) if words else None

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts of a text in order: (control word, its id) or (other text, None); empty parts are left out."""
        place = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            if match.start() > place:
                yield text[place : match.start()], None
            word = match.group() if match.group() in self.ids else match.group().strip()
            yield word, self.ids[word]
            place = match.end()
        if place < len(text):
            yield text[place:], None


class TextCodec(abc.ABC):
    """A tokenizer.

    Attributes:
        table: the bytes of each id.
        controls: the control words.
        marks: ids of control words that only frame texts and turns (`<|im_end|>`) and are not shown to readers. Words for
            the model to say, `<think>` or the tags of threads, are not marks.
        pad, eos: ids of padding (`eos` if the vocabulary has none) and of the end of a text, or of a turn in chat models.
        bos: id at the start of a text, None if texts have no such id.
        space: places where the tokenizer inserts a space before text: nowhere, at the start, or after control words too.
        chat_template: the template from messages to text, None if the tokenizer has none.
    """

    table: Sequence[bytes]
    controls: Controls
    marks: frozenset[int]
    pad: int
    eos: int
    bos: int | None
    space: Space = "never"
    chat_template: ChatTemplate | None = None

    @property
    def size(self) -> int:
        """Number of ids; a model's vocabulary may be padded above it (`model.config.padded_vocabulary`)."""
        return len(self.table)

    @abc.abstractmethod
    def id(self, word: str) -> int:
        """Id of a control word or another symbol; raises ValueError if the symbol is not one id."""

    def holding(self, field: str, texts: Sequence[str]) -> tuple[int, ...]:
        """The ids of control words, and of all tokens in which another text stands; a text across two tokens is not found.

        Args:
            field: the name of what is given, for errors.
            texts: control words and other texts.

        Raises:
            ValueError: no token holds one of the texts.
        """
        found: set[int] = set()
        for text in texts:
            wanted = text.encode()
            held = {i for i, piece in enumerate(self.table) if wanted in piece and i not in self.controls}
            held = {self.controls.ids[text]} if text in self.controls.ids else held
            if not text or not held:
                raise ValueError(
                    f"{field}: no token of this tokenizer holds {text!r}; give a shorter text, or a control word"
                )
            found |= held
        return tuple(sorted(found))

    @abc.abstractmethod
    def with_control_words(self, words: Sequence[str]) -> "TextCodec":
        """The same tokenizer in which each of `words` is one id; new ids follow the old ones, in the order given."""

    @abc.abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the tokenizer in a form that `apr_jax.pretrained.tokenizer.load` reads."""

    @abc.abstractmethod
    def encode_text(self, text: str, continues: bool = False) -> list[int]:
        """Ids of untrusted text, in which control words stay text.

        Args:
            text: any text.
            continues: the text follows other text, so no space is inserted before it.
        """

    @abc.abstractmethod
    def _files(self) -> dict[str, bytes]:
        """The contents of the tokenizer's files in a folder, chat template included, by file name."""

    def save_folder(self, folder: str | Path) -> None:
        """Write the tokenizer, chat template included, into a model's folder; the folder is made if missing.

        Files of another tokenizer in the folder (`FOLDER_FILES`) are replaced or removed, because they would be read instead
        of the new files or together with them; other files stay.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FOLDER_FILES:
            (folder / name).unlink(missing_ok=True)
        for name, content in self._files().items():
            (folder / name).write_bytes(content)

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Ids of trusted text, in which control words become their ids; no token is added at either end."""
        ids: list[int] = []
        for stretch, control in self.controls.split(text):
            ids += [control] if control is not None else self.encode_text(stretch, continues)
            continues = self.space != "always"
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control words shown.

        Bytes that are not UTF-8 become U+FFFD. An id beyond this vocabulary, which a padded model may sample, is shown as
        `<unused 40>`.
        """
        table, size = self.table, self.size
        known = [table[i] if 0 <= i < size else self.token_bytes(i) for i in map(int, ids)]
        text = b"".join(known).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.space != "never" else text

    def token_bytes(self, i: int) -> bytes:
        """The bytes of an id."""
        return self.table[i] if 0 <= i < self.size else f"<unused {i}>".encode()


class Stream:
    """Decodes tokens one by one; a character is returned when its last byte has arrived."""

    def __init__(self, codec: TextCodec):
        self._codec = codec
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = codec.space != "never"

    def push(self, i: int) -> str:
        """The text that one more token completes, often a word, sometimes the empty text."""
        return self._give(self._decoder.decode(self._codec.token_bytes(i)))

    def finish(self) -> str:
        """The rest of the text at the end: U+FFFD for an incomplete character, else the empty text."""
        return self._give(self._decoder.decode(b"", final=True))

    def _give(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


def unmatchable(i: int) -> str:
    """A symbol that no text can match, because tokenizers replace spaces before they look symbols up."""
    return f"control {i}"


def is_plain(word: str) -> bool:
    """Whether a word of a vocabulary is ordinary text: one character, or letters, digits and white space only.

    Vocabularies list such words (`ö`, runs of spaces, numbers) as added or user-defined, like their tags. Ordinary text always
    stays text; a tag, `<think>` or `[/INST]`, is a control word.
    """
    text = word.replace("▁", " ")
    return len(text) == 1 or all(c.isspace() or unicodedata.category(c)[0] in "LMN" for c in text)


def controls(ids: Mapping[str, int], left: Sequence[str] = (), right: Sequence[str] = ()) -> Controls:
    """`Controls` from a plain dict."""
    return Controls(MappingProxyType(dict(ids)), frozenset(left), frozenset(right))
