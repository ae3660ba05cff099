"""Replies of the host on the device: threads ask, and their protocol acts on what they are told (`apr_jax.decode.host`).

A thread that asks holds no lane. Its clock stands still: what the reply lets happen comes after all that the thread has written.
Axes: M threads, m messages, v values.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode.needs import Asks
from apr_jax.decode.threads import ASKING, READY, Threads, collect, pytree


@pytree
class Reply:
    """The host's last reply to each thread, and what the host knows.

    Attributes:
        given: the reply has come, and the protocol has not acted on it.
        action: what is to be done, a number of the protocol.
        values: numbers of the protocol.
        messages: number of messages.
        start, length: of each message, in the store of the book.
        told: the host was told of the thread, which another had joined that asked.
    """

    given: Bool[Array, "M"]
    action: Int[Array, "M"]
    values: Float[Array, "M v"]
    messages: Int[Array, "M"]
    start: Int[Array, "M m"]
    length: Int[Array, "M m"]
    told: Bool[Array, "M"]


def blank(asks: Asks | None) -> Any:
    """The reply to one thread that has not asked; () if no thread asks."""
    if asks is None:
        return ()
    zero, places = np.int32(0), np.zeros(asks.messages, np.int32)
    return Reply(np.bool(False), zero, np.zeros(asks.values, np.float32), zero, places, places, np.bool(False))


def ask(book: Any, who: Bool[Array, "M"] | Int[Array, ""]) -> Any:
    """Let threads ask the host, and wait until it has replied; `Protocol.replied` is called then. Maps a book to the new one."""
    return book.update(who, status=ASKING)


def take(book: Any, thread: Int[Array, ""]) -> Any:
    """The book in which a thread goes on that has got its reply."""
    reply = book.threads.reply
    return book.update(thread, status=READY, reply=dataclasses.replace(reply, given=jnp.zeros_like(reply.given)))


def untold(threads: Threads) -> Bool[Array, "*P M"]:
    """Threads that have been joined since their parents asked last."""
    return threads.bond.joined & ~threads.reply.told


def deliver(book: Any, reply: Reply, tokens: Int[Array, "host"], count: Int[Array, ""]) -> tuple[Any, Bool[Array, ""]]:
    """Write a problem's replies into its book; the tokens go to its store.

    Args:
        book: the book.
        reply: the replies of threads that got one; places of messages are those in `tokens`.
        tokens, count: what the host said to the problem.

    Returns:
        The book, and whether the store had no room: nothing is written then.
    """
    size, threads = book.store.shape[0], book.threads
    full = book.stored + count > size
    index = jnp.arange(size)
    store = book.store.at[jnp.where((index < count) & ~full, book.stored + index, size)].set(tokens, mode="drop")
    line, parent = threads.line.first, jnp.maximum(threads.line.parent, 0)
    answered = collect(line, reply.given.astype(jnp.int32), "max") > 0
    told = threads.reply.told | (untold(threads) & answered[line[parent]])
    new = dataclasses.replace(reply, start=reply.start + book.stored, told=told)
    threads = threads.where(reply.given & ~full, reply=new)
    threads = dataclasses.replace(threads, reply=dataclasses.replace(threads.reply, told=told))
    return book.replace(threads=threads, store=store, stored=book.stored + jnp.where(full, 0, count)), full
