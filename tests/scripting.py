"""Protocols whose threads say what a script has in place of what they sample."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from apr_jax.decode.book import pytree
from apr_jax.decode.protocol import Protocol
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec

LONGEST = 60


def scripted(
    protocol: Protocol,
    codec: TextCodec,
    texts: Sequence[Mapping[str, str]],
    names: Sequence[str],
    place: Callable[[Any], Int[Array, ""]] = lambda own: own.number + 1,
) -> Protocol:
    """The protocol in which threads follow scripts; who has none, or has said it all, says token 0 for ever.

    Args:
        texts: of each problem, by name.
        names: all names, in order.
        place: of the name of a thread's script among these, from the thread's state.
    """

    def row(text: str) -> tuple[int, ...]:
        ids = codec.encode(text)
        return tuple([*ids, *[0] * (LONGEST - len(ids))])

    @pytree
    class Scripts(type(protocol.own_state())):
        """What a thread remembers, and how much of its script it has said."""

        played: Int[Array, ""]

    @dataclasses.dataclass(frozen=True)
    class Scripted(type(protocol)):
        """Of each problem a row for each name."""

        scripts: tuple[tuple[tuple[int, ...], ...], ...] = ()

        def own_state(self):
            plain = super().own_state()
            return Scripts(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}, played=jnp.int32(0))

        def shared_state(self):
            return jnp.int32(0)

        def begin(self, book):
            return super().begin(book.replace(shared=book.problem))

        def observe(self, shared, own, drawn):
            token = jnp.asarray(self.scripts, jnp.int32)[shared, place(own), jnp.minimum(own.played, LONGEST - 1)]
            own = dataclasses.replace(own, played=own.played + 1)
            return super().observe(shared, own, dataclasses.replace(drawn, token=token))

    fields = {field.name: getattr(protocol, field.name) for field in dataclasses.fields(protocol)}
    return Scripted(**fields, scripts=tuple(tuple(row(each.get(name, "")) for name in names) for each in texts))


def replayed(protocol: Protocol, transcripts: Sequence[Transcript]) -> Protocol:
    """The protocol in which threads sample what those of transcripts generated, number i for problem i.

    Threads fork once deep at most, and the protocol forks in `drained`; who has said all says token 0 for ever.
    """
    most = max(len(each.threads) for each in transcripts)
    longest = 1 + max(len(each.generated(i)) for each in transcripts for i in range(len(each.threads)))
    told = np.zeros((len(transcripts), most, longest), np.int32)
    for number, each in enumerate(transcripts):
        for i in range(len(each.threads)):
            told[number, i, : len(each.generated(i))] = each.generated(i)
    plain = protocol.own_state()

    @pytree
    class Scripts(type(plain)):
        """What a thread remembers, the number of its script, and how much of that it has said."""

        script: Int[Array, ""]
        played: Int[Array, ""]

    @dataclasses.dataclass(frozen=True)
    class Replayed(type(protocol)):
        def own_state(self):
            remembered = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
            return Scripts(**remembered, script=jnp.int32(0), played=jnp.int32(0))

        def shared_state(self):
            return jnp.int32(0)

        def begin(self, book):
            return super().begin(book.replace(shared=book.problem))

        def drained(self, book, thread):
            book = super().drained(book, thread)
            line = book.threads.line
            return book.update_own(line.nesting > 0, script=1 + line.ordinal)

        def observe(self, shared, own, drawn):
            token = jnp.asarray(told)[shared, own.script, jnp.minimum(own.played, longest - 1)]
            own = dataclasses.replace(own, played=own.played + 1)
            return super().observe(shared, own, dataclasses.replace(drawn, token=token))

    return Replayed(**{field.name: getattr(protocol, field.name) for field in dataclasses.fields(protocol)})
