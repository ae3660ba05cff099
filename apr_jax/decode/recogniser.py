"""Control words in what a model samples, found on the device across token boundaries, and what is captured behind them.

A word is a sequence of symbols: a control word of the tokenizer is one symbol, matched by its id; everything else is bytes. So a
word that the vocabulary has as one id is found where that id is sampled and nowhere else, and one that it has not is found however
it is cut into tokens. The automaton is that of Aho and Corasick (1975, "Efficient string matching"), stepped by whole tokens:

- the match that ends first is found, of those that end together the longest;
- a token belongs to one match wholly: what it holds beyond the end of a match is no part of another, and after a match the
  automaton is at its start;
- only sampled tokens are stepped, so what a user writes is never control.

Tokens that do the same in every state form a class, so that a step reads two small tables. Axes: V token ids, one more for those
that the tokenizer lacks, S states, C classes, U terminators.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import token_classes
from apr_jax.decode.threads import pytree
from apr_jax.decode.token_classes import CLOSED_FORMS, DIGITS_MOST, FORM_BITS, WHOLE_FORMS, byte_hash
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A control word, by its text.

    Attributes:
        name: what the protocol calls it.
        text: control words of the tokenizer in it are matched by id, the rest by bytes.
        until: one character of ASCII; what follows the phrase up to it is captured. Empty: nothing is.
    """

    name: str
    text: str
    until: str = ""

    def __post_init__(self):
        if not self.text:
            raise ValueError(f"phrase {self.name}: its text is empty; give it at least one character")
        if self.until and not (len(self.until) == 1 and self.until.isascii()):
            raise ValueError(f"phrase {self.name}: until is {self.until!r}; it must be one character of ASCII")


@pytree
class Captured:
    """What followed the last phrase, if that captures, up to its terminator or so far.

    White space at both ends is left out; inside, one sort counts as the other.

    Attributes:
        open: the event of the phrase whose capture has not come to its terminator, 0 if there is none.
        tokens: tokens that hold captured bytes. They follow the token that completed the phrase.
        hash: of the bytes, however they were cut into tokens; see `byte_hash`.
        running: the same with the white space that came last.
        form: what it looks like, see `apr_jax.decode.token_classes`.
        digits, value: decimal digits in it, and the number that these make one after the other.
    """

    open: Int[Array, ""]
    tokens: Int[Array, ""]
    hash: UInt32[Array, ""]
    running: UInt32[Array, ""]
    form: Int[Array, ""]
    digits: Int[Array, ""]
    value: Int[Array, ""]

    @property
    def number(self) -> Int[Array, ""]:
        """Its value if it is nothing but up to nine decimal digits, else -1."""
        whole = jnp.any(self.form == jnp.array(WHOLE_FORMS)) & (self.digits <= DIGITS_MOST)
        return jnp.where(whole, self.value, -1)

    @property
    def numeric(self) -> Bool[Array, ""]:
        """Whether it is decimal digits, or several groups of them with one dot between two (1.2)."""
        return jnp.any(self.form == jnp.array(CLOSED_FORMS))


@pytree
class Found:
    """How far the automaton of a thread has come.

    Attributes:
        at: its state, 0 at the start.
        captured: a `Captured`; () if no phrase captures.
    """

    at: Int[Array, ""]
    captured: Any


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """An automaton for the phrases of a protocol and the tokens of a codec; see `of`. Static: equal if made of the same.

    Attributes:
        phrases: what is looked for.
        vocabulary: a digest of the bytes and the control words of all tokens.
        class_of: Int [V + 1].
        table: Int [S, C]; the next state, times one more than the phrases, plus the event.
        captures: UInt32 [U, V + 1, columns]; what each token adds to a capture, for each terminator.
    """

    phrases: tuple[Phrase, ...]
    vocabulary: str
    class_of: np.ndarray = dataclasses.field(compare=False, repr=False)
    table: np.ndarray = dataclasses.field(compare=False, repr=False)
    captures: np.ndarray = dataclasses.field(compare=False, repr=False)

    @staticmethod
    def of(codec: TextCodec, phrases: Sequence[Phrase]) -> "Recogniser":
        """Build the tables.

        Raises:
            ValueError: a phrase can never be found, because another always ends before it does; both named.
        """
        tokens = token_classes.symbols_of_tokens(codec)
        automaton = token_classes.automaton(
            [token_classes.symbols_of_text(codec, phrase.text) for phrase in phrases],
            [phrase.name for phrase in phrases],
        )
        class_of, table = token_classes.classes(tokens, automaton)
        captures = [token_classes.captures(tokens, ord(until)) for until in _terminators(phrases)]
        stacked = np.stack(captures) if captures else np.zeros((0, len(tokens), 0), np.uint32)
        return Recogniser(tuple(phrases), token_classes.digest(tokens), class_of, table, stacked)

    @property
    def capturing(self) -> list[Phrase]:
        """The phrases that capture, in order."""
        return [phrase for phrase in self.phrases if phrase.until]

    def event(self, name: str) -> int:
        """The event of a phrase; ValueError if there is none of that name."""
        names = [phrase.name for phrase in self.phrases]
        if name not in names:
            raise ValueError(f"recogniser: no phrase {name}; there are {', '.join(names)}")
        return 1 + names.index(name)

    def captured_event(self, name: str) -> int:
        """The event that the capture behind a phrase has come to its terminator; ValueError if it captures nothing."""
        capturing = [phrase.name for phrase in self.capturing]
        if name not in capturing:
            raise ValueError(f"recogniser: the phrase {name} captures nothing; those that do: {', '.join(capturing)}")
        return 1 + len(self.phrases) + capturing.index(name)

    def start(self) -> Found:
        """The state of a thread that has sampled nothing, or that is to begin anew."""
        if not len(self.captures):
            return Found(jnp.int32(0), ())
        zero = jnp.int32(0)
        return Found(zero, Captured(zero, zero, jnp.uint32(0), jnp.uint32(0), zero, zero, zero))

    def step(self, found: Found, token: Int[Array, ""]) -> tuple[Found, Int[Array, ""]]:
        """One sampled token.

        Returns:
            The next state; the event: 0 for none, 1 + the number of a phrase that the token completes, else 1 + the number of
            phrases + the number of a capturing phrase (among these) whose capture the token ends. A phrase that is completed
            while a capture is open breaks it off.
        """
        token, width = jnp.minimum(token, self.class_of.shape[0] - 1), 1 + len(self.phrases)
        packed = jnp.asarray(self.table)[found.at, jnp.asarray(self.class_of)[token]].astype(jnp.int32)
        at, phrase = packed // width, packed % width
        if not len(self.captures):
            return Found(at, ()), phrase
        captured, closes = self._capture(found.captured, token, phrase)
        return Found(at, captured), jnp.where(closes > 0, closes, phrase)

    def _capture(self, old: Captured, token: Int[Array, ""], phrase: Int[Array, ""]) -> tuple[Captured, Int[Array, ""]]:
        """The capture after a token, and the event that this ends it, else 0."""
        terminators = _terminators(self.phrases)
        which, opens, closing = (np.zeros(1 + len(self.phrases), np.int32) for _ in range(3))
        for each in self.capturing:
            place = self.event(each.name)
            which[place], opens[place] = terminators.index(each.until), place
            closing[place] = self.captured_event(each.name)
        row = jnp.asarray(self.captures)[jnp.asarray(which)[old.open], token]
        hash_factor, hash_sum, trim_factor, trim_sum, value, packed = row
        packed = packed.astype(jnp.int32)
        forms, packed = packed & ((1 << 3 * FORM_BITS) - 1), packed >> 3 * FORM_BITS
        digits, holds, solid, ends = packed & 15, (packed >> 4) & 1, (packed >> 5) & 1, (packed >> 6) & 1
        going = (old.open > 0) & (phrase == 0)
        scale = jnp.asarray(10 ** np.arange(16) % 2**32, jnp.uint32)[digits]
        grown = Captured(
            open=jnp.where(ends > 0, 0, old.open),
            tokens=old.tokens + holds,
            hash=jnp.where(solid > 0, old.running * trim_factor + trim_sum, old.hash),
            running=old.running * hash_factor + hash_sum,
            form=(forms >> (3 * old.form)) & 7,
            digits=jnp.minimum(old.digits + digits, 15),
            value=(old.value.astype(jnp.uint32) * scale + value).astype(jnp.int32),
        )
        fresh = dataclasses.replace(self.start().captured, open=jnp.asarray(opens)[phrase])

        def choose(new, grown, old):
            return jnp.where(phrase > 0, new, jnp.where(going, grown, old)).astype(old.dtype)

        captured = Captured(
            **{
                field.name: choose(*(getattr(each, field.name) for each in (fresh, grown, old)))
                for field in dataclasses.fields(Captured)
            }
        )
        return captured, jnp.where(going & (ends > 0), jnp.asarray(closing)[old.open], 0)


def _terminators(phrases: Sequence[Phrase]) -> list[str]:
    """The characters that end captures, in the order of `Recogniser.captures`."""
    return sorted({phrase.until for phrase in phrases if phrase.until})


@dataclasses.dataclass(frozen=True)
class Names:
    """Texts that a capture may be, known by their hash.

    Attributes:
        texts: in order.
    """

    texts: tuple[str, ...]

    def __post_init__(self):
        if len({byte_hash(text.encode()) for text in self.texts}) < len(self.texts):
            raise ValueError(f"names: two of {', '.join(self.texts)} have the same hash; leave one out")

    @staticmethod
    def numbers(most: int, nested: int = 0) -> "Names":
        """The numbers from 1 to `most`, then i.j for all i and j up to `nested`."""
        pairs = [f"{i}.{j}" for i in range(1, nested + 1) for j in range(1, nested + 1)]
        return Names((*map(str, range(1, most + 1)), *pairs))

    def find(self, captured: Captured) -> Int[Array, ""]:
        """The place of the captured text among the names, -1 if it is none of them."""
        same = jnp.asarray([byte_hash(text.encode()) for text in self.texts], jnp.uint32) == captured.hash
        return jnp.where(jnp.any(same), jnp.argmax(same), -1).astype(jnp.int32)
