"""The tables of a recogniser, built with NumPy once: what each token does to an automaton over bytes, and to a capture.

A token is a sequence of symbols: its bytes, or one number above them if it is a control word.
Axes: V token ids, one more for those that the tokenizer lacks, S states, A symbols that phrases are made of and one for all others.
"""

import dataclasses
import hashlib
import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np

from apr_jax.tokenizer import TextCodec

BYTES = 256
_FACTOR = 2654435761
_SPACE = b" \t\n\r\v\f"
_CHUNK = 4096  # sequences of symbols that are run through all states at once

# What a capture looks like: nothing yet, digits, digits and a dot, several groups of digits, either of them with white space after,
# none of these.
START, DIGITS, DOT, DOTTED, DIGITS_SPACE, DOTTED_SPACE, OTHER = range(7)
FORM_BITS = 7  # forms; each takes three bits
WHOLE_FORMS, CLOSED_FORMS = (DIGITS, DIGITS_SPACE), (DIGITS, DOTTED, DIGITS_SPACE, DOTTED_SPACE)
DIGITS_MOST = 9

Symbols = tuple[int, ...] | bytes


def symbols_of_tokens(codec: TextCodec) -> list[Symbols]:
    """The symbols of every id, and last of one that the tokenizer lacks."""
    control = codec.controls
    tokens: list[Symbols] = [(BYTES + i,) if i in control else codec.token_bytes(i) for i in range(codec.size)]
    return [*tokens, (BYTES + codec.size,)]


def symbols_of_text(codec: TextCodec, text: str) -> tuple[int, ...]:
    """The symbols of trusted text."""
    return tuple(
        itertools.chain.from_iterable(
            stretch.encode() if i is None else (BYTES + i,) for stretch, i in codec.controls.split(text)
        )
    )


def digest(tokens: Sequence[Symbols]) -> str:
    """A digest of the symbols of all tokens."""
    told = hashlib.sha256()
    for token in tokens:
        told.update(repr(token).encode())
    return told.hexdigest()


def byte_hash(text: bytes) -> int:
    """A polynomial in the bytes, modulo 2^32, in which white space counts as 0: what stands before the first other byte, or after
    the last one, is left out."""
    value = 0
    for byte in text.strip(_SPACE):
        value = (value * _FACTOR + (0 if byte in _SPACE else byte + 1)) % 2**32
    return value


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The automaton of Aho and Corasick, whose states are the beginnings of phrases.

    Attributes:
        alphabet: the symbols that phrases are made of; column 0 of `step` is that of all others.
        step: Int [S, A]; the next state.
        found: Int [S]; 1 + the number of the longest phrase that ends here, 0 if none does.
    """

    alphabet: tuple[int, ...]
    step: np.ndarray
    found: np.ndarray


def automaton(phrases: Sequence[tuple[int, ...]], names: Sequence[str]) -> Automaton:
    """The automaton of phrases.

    Raises:
        ValueError: no phrase at all, more than 255 symbols, or a phrase that can never be found, because another ends inside it
            or is the same.
    """
    if not phrases:
        raise ValueError("recogniser: no phrases; give at least one")
    alphabet = tuple(sorted({symbol for phrase in phrases for symbol in phrase}))
    if len(alphabet) > 255:
        raise ValueError(
            f"recogniser: the phrases are made of {len(alphabet)} bytes and control words; 255 are allowed"
        )
    column = {symbol: 1 + place for place, symbol in enumerate(alphabet)}
    children: list[dict[int, int]] = [{}]
    found, owner = [0], [0]
    for number, phrase in enumerate(phrases):
        node = 0
        for symbol in phrase:
            if column[symbol] not in children[node]:
                children[node][column[symbol]] = len(children)
                children.append({})
                found.append(0)
                owner.append(number)
            node = children[node][column[symbol]]
        if found[node]:
            raise ValueError(f"recogniser: the phrases {names[found[node] - 1]} and {names[number]} are the same")
        found[node] = 1 + number
    step = np.zeros((len(children), 1 + len(alphabet)), np.int32)
    fallback, queue = [0] * len(children), deque([0])
    while queue:
        node = queue.popleft()
        step[node] = step[fallback[node]] if node else 0
        for symbol, child in children[node].items():
            fallback[child] = int(step[fallback[node], symbol]) if node else 0
            step[node, symbol] = child
            found[child] = found[child] or found[fallback[child]]
            queue.append(child)
            if found[child] and children[child]:
                inner, outer = names[found[child] - 1], names[owner[next(iter(children[child].values()))]]
                raise ValueError(
                    f"recogniser: the phrase {outer} can never be found, because {inner} ends inside it; change one of them"
                )
    return Automaton(alphabet, step, np.array(found, np.int32))


def classes(tokens: Sequence[Symbols], machine: Automaton) -> tuple[np.ndarray, np.ndarray]:
    """The class of every token, and for every state and class the next state and the event in one number.

    Returns:
        Int [V + 1]; Int [S, C], see `apr_jax.decode.recogniser.Recogniser`.
    """
    width = 1 + int(machine.found.max())
    kept, place_of = _distinct(tokens, machine.alphabet)
    rows: dict[bytes, int] = {}
    class_of_kept = np.empty(len(kept), np.int32)
    for first in range(0, len(kept), _CHUNK):
        outcome = _run(kept[first : first + _CHUNK], machine, width)
        for place, row in enumerate(outcome, start=first):
            class_of_kept[place] = rows.setdefault(row.tobytes(), len(rows))
    table = np.stack([np.frombuffer(row, np.int32) for row in rows], axis=1)
    return _narrow(class_of_kept[place_of]), _narrow(table)


def _distinct(tokens: Sequence[Symbols], alphabet: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
    """The sequences that tokens are to the automaton, each once, as columns of `step`; and which of them each token is."""
    column = {symbol: 1 + place for place, symbol in enumerate(alphabet)}
    translation = bytes(column.get(byte, 0) for byte in range(BYTES))
    seen: dict[bytes, int] = {}
    place_of = np.empty(len(tokens), np.int32)
    for i, token in enumerate(tokens):
        sequence = token.translate(translation) if isinstance(token, bytes) else bytes([column.get(token[0], 0)])
        place_of[i] = seen.setdefault(sequence, len(seen))
    return list(seen), place_of


def _run(sequences: Sequence[bytes], machine: Automaton, width: int) -> np.ndarray:
    """For every sequence and every state it may meet, next state times width plus event: Int [n, S]."""
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.zeros((len(sequences), max(1, lengths.max(initial=0))), np.uint8)
    for place, sequence in enumerate(sequences):
        padded[place, : len(sequence)] = np.frombuffer(sequence, np.uint8)
    count = machine.step.shape[0]
    state = np.tile(np.arange(count, dtype=np.int32), (len(sequences), 1))
    event = np.zeros_like(state)
    for column in range(padded.shape[1]):
        going = np.flatnonzero(lengths > column)
        old, met = state[going], event[going]
        new = machine.step[old, padded[going, column][:, None]]
        found = np.where(met == 0, machine.found[new], 0)
        event[going] = met + found
        state[going] = np.where((met + found) > 0, 0, new)
    return state * width + event


def captures(tokens: Sequence[Symbols], until: int) -> np.ndarray:
    """What each token adds to a capture that ends with the byte `until`: UInt32 [V + 1, 6].

    Of its symbols before the terminator: factor and sum that the hash takes on, the same up to the last symbol that is not white
    space; the number that its digits make; and packed, the form that each form becomes, three bits each, digits (4 bits), whether
    there are any symbols, whether one is not white space, whether the terminator is there.
    """
    count = len(tokens)
    factor, trim_factor = np.ones((2, count), np.uint32)
    total, trim_total, value, digits = np.zeros((4, count), np.uint32)
    ended, solid, holds = np.zeros((3, count), bool)
    forms = np.tile(np.arange(FORM_BITS, dtype=np.uint32), (count, 1))
    after, kind_of = _form_steps()
    lengths = np.array([len(token) for token in tokens])
    for place in range(lengths.max()):
        going = np.flatnonzero((lengths > place) & ~ended)
        symbol = np.array([tokens[i][place] for i in going], np.int64)
        ended[going] = symbol == until
        going, symbol = going[symbol != until], symbol[symbol != until]
        kind = kind_of[np.minimum(symbol, BYTES)]
        factor[going] *= np.uint32(_FACTOR)
        total[going] = total[going] * np.uint32(_FACTOR) + np.where(kind == 2, 0, symbol + 1).astype(np.uint32)
        real = going[kind != 2]
        trim_factor[real], trim_total[real], solid[real], holds[going] = factor[real], total[real], True, True
        number = going[kind == 0]
        value[number] = value[number] * np.uint32(10) + (symbol[kind == 0] - ord("0")).astype(np.uint32)
        digits[number] += 1
        forms[going] = after[forms[going], kind[:, None]]
    packed = np.sum(forms << (3 * np.arange(FORM_BITS, dtype=np.uint32)), axis=1, dtype=np.uint32)
    flags = np.minimum(digits, 15) | (holds * 16) | (solid * 32) | (ended * 64)
    packed |= flags.astype(np.uint32) << np.uint32(3 * FORM_BITS)
    return np.stack([factor, total, trim_factor, trim_total, value, packed], axis=1)


def _form_steps() -> tuple[np.ndarray, np.ndarray]:
    """The form after each form and kind of symbol: digit, dot, white space, other; and the kind of every symbol."""
    after = np.full((FORM_BITS, 4), OTHER, np.uint32)
    after[START, 2] = START
    after[[START, DIGITS], 0] = DIGITS
    after[[DOT, DOTTED], 0] = DOTTED
    after[[DIGITS, DOTTED], 1] = DOT
    after[[DIGITS, DIGITS_SPACE], 2] = DIGITS_SPACE
    after[[DOTTED, DOTTED_SPACE], 2] = DOTTED_SPACE
    kinds = np.full(BYTES + 1, 3)
    kinds[ord("0") : ord("9") + 1], kinds[ord(".")] = 0, 1
    kinds[list(_SPACE)] = 2
    return after, kinds


def _narrow(table: np.ndarray) -> np.ndarray:
    """The table in the narrowest of a few dtypes that holds it."""
    fits = (dtype for dtype in (np.uint8, np.uint16) if table.max() <= np.iinfo(dtype).max)
    return table.astype(next(fits, np.int32))
