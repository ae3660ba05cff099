"""The state that the loop carries, and how problems enter and leave it.

Every leaf of a state has a leading axis of shards; inside `shard_map` a shard sees its own part without this axis.
Axes: P problems in flight, Q problems of the queue, O places of the outbox, N slots, T log entries, L layers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode.book import Book, Request, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.pool import Slots, Stored, empty
from apr_jax.decode.problem import Problem
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import Lineage, Sampling
from apr_jax.record import Stop


@pytree
class LogArrays:
    """The flat logs. Fields that are written at the same moment share an array, so that one scatter writes them.

    Entries are the last axis, because TPUs pad the last axis to 128: with the fields last, each entry would take 128 numbers.

    Attributes:
        queued: Int [P, 5, T]: token, source, predictor, depth, drawn token; written when the token is sampled or first fed.
        fed: Int [P, 3, T]: index, position, clock; written when the token is fed, -1 before.
        numbers: Float [P, 2 + n, T]: log-probability under the model and under the distribution drawn from, nats, then the signals
            if they are logged; arbitrary for tokens that were not sampled (but never NaN, which `jax_debug_nans` would report).
    """

    queued: Int[Array, "P 5 T"]
    fed: Int[Array, "P 3 T"]
    numbers: Float[Array, "P m T"]


@pytree
class Queue:
    """The waiting problems; `next`: index of the first problem that has not entered, `count`: number of problems."""

    prompt: Int[Array, "Q prompt"]
    prompt_length: Int[Array, "Q"]
    problem: Int[Array, "Q"]
    sample: Int[Array, "Q"]
    max_tokens: Int[Array, "Q"]
    child_max_tokens: Int[Array, "Q"]
    temperature: Float[Array, "Q"]
    top_k: Int[Array, "Q"]
    top_p: Float[Array, "Q"]
    parts: Int[Array, "Q parts 2"]
    arguments: Int[Array, "Q arguments"]
    next: Int[Array, ""]
    count: Int[Array, ""]

    @classmethod
    def of(cls, problems: Sequence[Problem], sizes: Sizes, shards: int, needs: Needs) -> "Queue":
        """The queues of all shards, as NumPy arrays with a leading axis of shards; problems are dealt to the shards in turn."""
        blank = lambda *shape, dtype=np.int32: np.zeros((shards, sizes.queue, *shape), dtype)
        same = ("sample", "max_tokens", "child_max_tokens", "temperature", "top_k", "top_p", "arguments")
        arrays = {name: blank() for name in ("prompt_length", "problem", *same)}
        arrays |= {name: blank(dtype=np.float32) for name in ("temperature", "top_p")}
        arrays |= {"prompt": blank(sizes.prompt), "arguments": blank(needs.arguments)}
        arrays["parts"] = blank(len(needs.parts), 2)
        for number, problem in enumerate(problems):
            where, length = (number % shards, number // shards), len(problem.prompt)
            arrays["prompt"][where][:length] = problem.prompt
            arrays["prompt_length"][where], arrays["problem"][where] = length, problem.id
            for name in same:
                arrays[name][where] = getattr(problem, name)
            for place, name in enumerate(needs.parts):
                begin, end = problem.parts[name]
                arrays["parts"][where][place] = begin, end - begin
        count = np.array([len(range(shard, len(problems), shards)) for shard in range(shards)], np.int32)
        return cls(**arrays, next=np.zeros(shards, np.int32), count=count)


@pytree
class KeptThreads:
    """The columns of the thread table that a transcript needs, see `threads.Threads`."""

    status: Int[Array, "M"]
    stop: Int[Array, "M"]
    line: Lineage
    length: Int[Array, "M"]
    sampling: Sampling


@pytree
class Kept:
    """The fields of a book that a transcript needs, see `book.Book`; `own` and `shared` are empty if they are not recorded."""

    threads: KeptThreads
    sees: UInt32[Array, "M words"]
    used: Int[Array, ""]
    log_owner: Int[Array, "log_pages"]
    log_first: Int[Array, "log_pages"]
    problem: Int[Array, ""]
    sample: Int[Array, ""]
    stop: Int[Array, ""]
    own: Any
    shared: Any


@pytree
class Outbox:
    """Finished problems that the host has not fetched: the first `count` rows of `log` and `book`."""

    log: LogArrays
    book: Kept
    count: Int[Array, ""]


@pytree
class Counters:
    """Sums over the life of a state: steps of either kind, busy rows of decode steps, tokens fed and sampled, problems finished,
    questions that the host has answered."""

    feed_steps: Int[Array, ""]
    decode_steps: Int[Array, ""]
    decode_rows: Int[Array, ""]
    fed: Int[Array, ""]
    sampled: Int[Array, ""]
    finished: Int[Array, ""]
    questions: Int[Array, ""]


@pytree
class State:
    """Everything that the loop carries; donated from slice to slice.

    Attributes:
        pool: per layer (keys, values), each [P, N, K h], or in int8 with its scales [P, K, N].
        slots: owner and clock of each slot.
        log: the logs of the problems in flight.
        books: the books of the problems in flight, with a leading axis P.
        bulk: the protocol's bulk state of each line, a tree of arrays [P, M, ...], in the row of the line's first thread.
        queue, outbox, counters: see their classes.
        seed: UInt32 [2], the random key from which the problems' keys are folded.
    """

    pool: tuple[tuple[Stored, Stored], ...]
    slots: Slots
    log: LogArrays
    books: Book
    bulk: Any
    queue: Queue
    outbox: Outbox
    counters: Counters
    seed: Array

    def replace(self, **values: Any) -> "State":
        """A copy with new values, cast to the old dtypes if the tree structure is the same."""
        structure = jax.tree.structure
        same = lambda new, old: books.cast(new, old) if structure(new) == structure(old) else new
        return dataclasses.replace(self, **{name: same(new, getattr(self, name)) for name, new in values.items()})


def kept(book: Book, recorded: bool) -> Kept:
    """The fields of a book that a transcript needs; `recorded`: the protocol's state too."""
    threads, (own, shared) = book.threads, (book.threads.own, book.shared) if recorded else ((), ())
    table = KeptThreads(threads.status, threads.stop, threads.line, threads.cursor.length, threads.sampling)
    return Kept(
        table, book.sees, book.used, book.log_owner, book.log_first, book.problem, book.sample, book.stop, own, shared
    )


def _empty_log(rows: int, entries: int, wide: jnp.dtype, needs: Needs) -> LogArrays:
    return LogArrays(
        queued=jnp.zeros((rows, 5, entries), jnp.int32),
        fed=jnp.full((rows, 3, entries), -1, jnp.int32),
        numbers=jnp.zeros((rows, 2 + needs.logged * len(needs.signals), entries), wide),
    )


def create(
    sizes: Sizes,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any,
    seed: Array,
    protocol: books.Owner = books.Nobodys(),  # noqa: B008 - frozen
) -> State:
    """An empty state of one shard; jit it with `out_shardings` to allocate every array in its place on the mesh.

    Args:
        sizes: static sizes.
        layers, kv_heads, head_dim: L, K and h of the model.
        dtype: dtype of keys and values.
        seed: UInt32 [2], random key.
        protocol: the protocol that the books serve.
    """
    p = sizes.problems
    wide = jnp.promote_types(dtype, jnp.float32)
    blank, bulk = books.empty(sizes, protocol), protocol.bulk_state()
    stack = lambda count: jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), blank)
    recorded = protocol.needs.recorded
    zero = jnp.zeros((), jnp.int32)
    queue_ints = jnp.zeros(sizes.queue, jnp.int32)
    return State(
        pool=tuple(tuple(empty(sizes, kv_heads, head_dim, dtype) for _ in range(2)) for _ in range(layers)),
        slots=Slots(jnp.full((p, sizes.slots), books.NOBODY, jnp.int32), jnp.zeros((p, sizes.slots), jnp.int32)),
        log=_empty_log(p, sizes.log, wide, protocol.needs),
        books=stack(p),
        bulk=jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (p, sizes.threads, *jnp.shape(x))), bulk),
        queue=Queue(
            prompt=jnp.zeros((sizes.queue, sizes.prompt), jnp.int32),
            **{
                name: queue_ints
                for name in ("prompt_length", "problem", "sample", "max_tokens", "child_max_tokens", "top_k")
            },
            **{name: jnp.zeros(sizes.queue, jnp.float32) for name in ("temperature", "top_p")},
            parts=jnp.zeros((sizes.queue, *blank.parts.shape), jnp.int32),
            arguments=jnp.zeros((sizes.queue, len(blank.arguments)), jnp.int32),
            next=zero,
            count=zero,
        ),
        outbox=Outbox(
            _empty_log(sizes.outbox, sizes.log, wide, protocol.needs), kept(stack(sizes.outbox), recorded), zero
        ),
        counters=Counters(*(zero for _ in dataclasses.fields(Counters))),
        seed=seed,
    )


def leaving(state: State) -> Bool[Array, "P"]:
    """Ended problems that still occupy a place."""
    return state.books.active & (state.books.stop != Stop.RUNNING)


def room(state: State) -> Bool[Array, ""]:
    """Whether the outbox can take one more problem."""
    return state.outbox.count < state.outbox.book.used.shape[0]


def retire(state: State, recorded: bool) -> State:
    """Move ended problems to the outbox, as many as it has room for."""
    ended = leaving(state)
    place = state.outbox.count + jnp.cumsum(ended) - 1
    size = state.outbox.book.used.shape[0]
    goes = ended & (place < size)
    place = jnp.where(goes, place, size)
    put = lambda box, value: box.at[place].set(value, mode="drop")
    outbox = Outbox(
        log=jax.tree.map(put, state.outbox.log, state.log),
        book=jax.tree.map(put, state.outbox.book, kept(state.books, recorded)),
        count=state.outbox.count + jnp.sum(goes, dtype=jnp.int32),
    )
    quiet = dataclasses.replace(state.books.threads, event=jnp.where(goes[:, None], 0, state.books.threads.event))
    finished = state.counters.finished + jnp.sum(goes, dtype=jnp.int32)
    return state.replace(
        outbox=outbox,
        books=state.books.replace(threads=quiet, active=state.books.active & ~goes),
        counters=dataclasses.replace(state.counters, finished=finished),
    )


def refill(state: State, protocol: Protocol, sizes: Sizes) -> State:
    """Move the next problems of the queue into the free places. Old keys and values stay in the pool; no thread sees them."""
    queue = state.queue
    free = ~state.books.active
    number = queue.next + jnp.cumsum(free) - 1
    enters = free & (number < queue.count)
    row = jnp.minimum(number, sizes.queue - 1)

    def begin(row, enters, old):
        blank = books.empty(sizes, protocol)
        problem, sample = queue.problem[row], queue.sample[row]
        book = blank.replace(
            prompt=queue.prompt[row],
            prompt_length=queue.prompt_length[row],
            problem=problem,
            sample=sample,
            request=Request(*(getattr(queue, field.name)[row] for field in dataclasses.fields(Request))),
            parts=queue.parts[row],
            arguments=queue.arguments[row],
            key=books.fold(books.fold(state.seed, problem), sample),
            active=jnp.ones((), bool),
        )
        book = protocol.begin(book)
        return jax.tree.map(lambda new, old: jnp.where(enters, new, old), book, old)

    entered = jax.vmap(begin)(row, enters, state.books)
    owner = jnp.where(enters[:, None], books.NOBODY, state.slots.owner)
    fed = jnp.where(enters[:, None, None], -1, state.log.fed)  # entries never fed must read -1
    return state.replace(
        books=entered,
        slots=dataclasses.replace(state.slots, owner=owner),
        log=dataclasses.replace(state.log, fed=fed),
        queue=dataclasses.replace(queue, next=queue.next + jnp.sum(enters, dtype=jnp.int32)),
    )
