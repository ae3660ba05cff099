"""What methods have in common whose model forks by tags: with numbered outlines, of which each becomes a thread, or without."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Names, Phrase, Recogniser
from apr_jax.methods.method import Method
from apr_jax.protocols import format_errors
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagged(Method):
    """The tags may be ids of their own or ordinary text: both are found.

    Attributes:
        tag_names: of the format, each with an opening and a closing tag.
        least: of fields that are whole numbers, the least value.
        blocks: forks of one line.
        trained: the checkpoint knows the tags: each must be one id of its tokenizer.
        first_id: the id that the first tag must have, from which the others follow in order; 0: any. With `trained`.
    """

    tag_names: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, int]] = {}
    end: str = ""
    blocks: int = 32
    trained: bool = False
    first_id: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name, least in {"blocks": 1, "first_id": 0, **self.least}.items():
            whole(f"{self.name}.{name}", getattr(self, name), least)
        if self.trained and self.add:
            raise ValueError(
                f"{self.name}.add is True; a checkpoint that is trained has the tags, leave one of the two out"
            )
        if self.first_id and not self.trained:
            raise ValueError(
                f"{self.name}.first_id is {self.first_id}; it is checked for a trained checkpoint, set trained"
            )

    def _check(self, codec: TextCodec) -> None:
        """Refuse a tokenizer that is not the one that the tags were trained with."""
        for place, word in enumerate(self.words if self.trained else ()):
            ids = codec.encode(word, continues=True)
            if len(ids) != 1:
                raise ValueError(
                    f"{self.name}.trained is True; {word} is {len(ids)} tokens of this tokenizer, it must be one: take the "
                    "tokenizer of the checkpoint's folder"
                )
            if self.first_id and ids[0] != self.first_id + place:
                raise ValueError(
                    f"{self.name}.first_id is {self.first_id}; {word} must have the id {self.first_id + place}, this tokenizer has "
                    f"{ids[0]}: take the tokenizer of the checkpoint's folder, or first_id 0 for a checkpoint of your own"
                )

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(f"<{slash}{name}>" for name in self.tag_names for slash in ("", "/"))

    @abc.abstractmethod
    def tags(self) -> Mapping[str, str]:
        """The words that the protocol looks for, by the protocol's names."""

    @abc.abstractmethod
    def says(self, numbers: Sequence[str]) -> Mapping[str, str | Sequence[str]]:
        """The phrases that the protocol says."""

    @abc.abstractmethod
    def numbers(self) -> Names:
        """The numbers that threads may have."""

    def until(self, name: str) -> str:
        """The character that ends what a word captures; empty for words that capture nothing."""
        return ""

    def _protocol(self, codec: TextCodec, kind: type[protocols.Outlined], **choices: Any) -> protocols.Outlined:
        self._check(codec)
        words = [Phrase(name, text, self.until(name)) for name, text in self.tags().items()]
        return kind(
            Recogniser.of(codec, words),
            Phrases.of(codec, self.says(self.numbers().texts)),
            self.numbers(),
            self.end_id(codec),
            blocks=self.blocks,
            **choices,
        )

    def format_errors(self, transcript: Transcript) -> Mapping[str, int]:
        return format_errors.of(transcript)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlined(Tagged):
    """See `apr_jax.protocols.outlined`.

    Attributes:
        most: outlines of one fork.
        largest: the largest number of an outline; 0: as `most`.
        nested: numbers i.j are known for i and j up to this.
    """

    least: ClassVar[Mapping[str, int]] = {"most": 1, "largest": 0, "nested": 0}
    most: int = 50
    largest: int = 0
    nested: int = 9

    def numbers(self) -> Names:
        return Names.numbers(self.largest or self.most, self.nested)

    def until(self, name: str) -> str:
        return ":" if name == "outline" else ""

    def _protocol(
        self, codec: TextCodec, kind: type[protocols.Outlined] = protocols.Outlined, **choices: Any
    ) -> protocols.Outlined:
        return super()._protocol(codec, kind, most=self.most, **choices)
