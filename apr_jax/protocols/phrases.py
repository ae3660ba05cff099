"""What a protocol says in words of its own: phrases by name, and families of them by number, in one table of template tokens."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int

from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Phrases:
    """Phrases in canonical tokens, made by `of` or `of_ids`. Static.

    Attributes:
        tokens: all of them, one after the other: what a protocol gives as `templates`.
        names: of the phrases and families.
        starts, lengths: of the members of each, in `tokens`; a phrase is a family of one.
    """

    tokens: tuple[int, ...]
    names: tuple[str, ...]
    starts: tuple[tuple[int, ...], ...]
    lengths: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(codec: TextCodec, texts: Mapping[str, str | Sequence[str]]) -> "Phrases":
        """Encode trusted texts, each by itself, as they stand in the middle of other text.

        Args:
            texts: a text for each phrase, several for each family (a header for each number, say: its tokens are those of the whole
                header, not of its parts).

        Raises:
            ValueError: a text without tokens, named.
        """
        families = {}
        for name, members in texts.items():
            encoded = [
                codec.encode(text, continues=True) for text in ([members] if isinstance(members, str) else members)
            ]
            if not encoded or not all(encoded):
                raise ValueError(f"phrase {name} is {members!r}; every text of it must have at least one token")
            families[name] = encoded
        return Phrases.of_ids(**families)

    @staticmethod
    def of_ids(**families: Sequence[Sequence[int]]) -> "Phrases":
        """Phrases whose tokens are known, those of each family by its name."""
        tokens: list[int] = []
        starts, lengths = [], []
        for members in families.values():
            lengths.append(tuple(map(len, members)))
            starts.append(tuple(len(tokens) + sum(lengths[-1][:i]) for i in range(len(members))))
            tokens += [i for member in members for i in member]
        return Phrases(tuple(tokens), tuple(families), tuple(starts), tuple(lengths))

    def one(self, name: str) -> tuple[int, int]:
        """Start and length of a phrase."""
        place = self.names.index(name)
        return self.starts[place][0], self.lengths[place][0]

    def each(self, name: str, number: Int[Array, "..."]) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
        """Start and length of the members of a family that the numbers name; each must be a member's."""
        place = self.names.index(name)
        number = jnp.clip(number, 0, len(self.starts[place]) - 1)  # of threads that say nothing it may be anything
        return tuple(jnp.asarray(table[place], jnp.int32)[number] for table in (self.starts, self.lengths))
