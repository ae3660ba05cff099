"""The rule of the recogniser once more, in plain Python; and codecs that are any table of tokens."""

import dataclasses
from collections.abc import Sequence

from apr_jax.decode.recogniser import Phrase
from apr_jax.tokenizer.codec import TextCodec, controls


class Table(TextCodec):
    """Any tokens, then control words. Text is cut into the longest tokens that fit, from left to right."""

    def __init__(self, table: Sequence[bytes], words: Sequence[str] = ()):
        self.table = [*table, *(word.encode() for word in words)]
        self.controls = controls({word: len(table) + i for i, word in enumerate(words)})
        self.longest = sorted(range(len(table)), key=lambda i: -len(table[i]))

    def encode_text(self, text: str, continues: bool = False) -> list[int]:
        rest, ids = text.encode(), []
        while rest:
            ids.append(next(i for i in self.longest if self.table[i] and rest.startswith(self.table[i])))
            rest = rest[len(self.table[ids[-1]]) :]
        return ids

    def id(self, word: str) -> int:
        return self.controls.ids[word]

    with_control_words = save = _files = None


Table.__abstractmethods__ = frozenset()


@dataclasses.dataclass
class Plain:
    """The rule once more: one token after the other, one symbol after the other."""

    codec: TextCodec
    phrases: tuple[Phrase, ...]
    seen: tuple = ()
    open: int | None = None
    text: bytes | None = None
    tokens: int = 0

    def symbols(self, token):
        if token in self.codec.controls or token >= self.codec.size:
            return (f"word {min(token, self.codec.size)}",)
        return tuple(self.codec.token_bytes(token))

    def phrase(self, place):
        split = self.codec.controls.split(self.phrases[place].text)
        return tuple(x for text, i in split for x in ((f"word {i}",) if i is not None else text.encode()))

    def step(self, token):
        """The event, by name."""
        for symbol in self.symbols(token):
            self.seen += (symbol,)
            ends = [i for i in range(len(self.phrases)) if self.seen[-len(self.phrase(i)) :] == self.phrase(i)]
            if ends:
                best = max(ends, key=lambda i: len(self.phrase(i)))
                self.seen, self.tokens, self.text = (), 0, b""
                self.open = best if self.phrases[best].until else None
                return self.phrases[best].name
        if self.open is None:
            return ""
        symbols = self.symbols(token)
        until = ord(self.phrases[self.open].until)
        kept = symbols[: symbols.index(until)] if until in symbols else symbols
        self.tokens += bool(kept)
        self.text += b"".join(bytes([x]) if isinstance(x, int) else b"\x00word\x00" for x in kept)
        if until in symbols:
            name, self.open = self.phrases[self.open].name, None
            return f"{name} captured"
        return ""
