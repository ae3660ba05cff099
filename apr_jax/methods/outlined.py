"""What methods have in common whose model lists numbered outlines, of which each becomes a thread."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Names, Phrase, Recogniser
from apr_jax.methods.method import Method
from apr_jax.protocols.outlined import Join
from apr_jax.protocols.phrases import Phrases
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlined(Method):
    """See `apr_jax.protocols.outlined`. The tags may be ids of their own or ordinary text: both are found.

    Attributes:
        tag_names: of the format, each with an opening and a closing tag.
        most: outlines of one fork, and the largest number of an outline.
        nested: numbers i.j are known for i and j up to this.
        blocks: forks of one line.
    """

    tag_names: ClassVar[tuple[str, ...]] = ()
    end: str = ""
    most: int = 50
    nested: int = 9
    blocks: int = 32

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("most", 1), ("nested", 0), ("blocks", 1)):
            whole(f"{self.name}.{name}", getattr(self, name), least)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(f"<{slash}{name}>" for name in self.tag_names for slash in ("", "/"))

    @abc.abstractmethod
    def tags(self) -> Mapping[str, str]:
        """The words that the protocol looks for: `outlines`, `fork`, `outline`, `close`."""

    @abc.abstractmethod
    def says(self, numbers: Sequence[str]) -> Mapping[str, str | Sequence[str]]:
        """The phrases that the protocol says."""

    def _protocol(self, codec: TextCodec, join: Join, max_depth: int = 1, response: int = 0) -> protocols.Outlined:
        numbers = Names.numbers(self.most, self.nested)
        words = [Phrase(name, text, ":" if name == "outline" else "") for name, text in self.tags().items()]
        return protocols.Outlined(
            Recogniser.of(codec, words),
            Phrases.of(codec, self.says(numbers.texts)),
            numbers,
            self.end_id(codec),
            join=join,
            most=self.most,
            blocks=self.blocks,
            max_depth=max_depth,
            response=response,
        )
