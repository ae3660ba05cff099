"""Protocols whose threads say what a script has in place of what they sample."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from apr_jax.decode.book import pytree
from apr_jax.decode.protocol import Protocol
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
