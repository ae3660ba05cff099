"""What rows draw and what the protocol makes of it: adjusted logits, events, scores. Axes: B tiles, V vocabulary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax import sharding
from apr_jax.decode import book as books
from apr_jax.decode import messages, schedule
from apr_jax.decode.book import Book
from apr_jax.decode.program import Program
from apr_jax.decode.protocol import Drawn
from apr_jax.decode.sampling import sample
from apr_jax.decode.state import State
from apr_jax.decode.threads import masked


def draw(
    program: Program, state: State, tiles: schedule.Tiles, threads: books.Threads, logits: Float[Array, "B V"]
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"], Bool[Array, "B"]]:
    """Draw a token a tile, from logits that the protocol may adjust.

    Returns:
        token, its log-probability under the model, the same under the distribution drawn from, whether any token may be drawn.
    """
    parameters = threads.sampling.temperature, threads.sampling.top_k, threads.sampling.top_p
    if not program.protocol.needs.adjusts:
        drawn = sharding.by_rows(sample, logits, _uniform(threads), *parameters)
        return *drawn, jnp.ones(len(tiles.busy), bool)
    shared, bulk = _kept(program, state, tiles, threads)
    leaves, structure = jax.tree.flatten((shared, threads.own, bulk))

    def rows(logits, uniform, temperature, top_k, top_p, *leaves):
        adjusted = jax.vmap(program.protocol.adjust)(*jax.tree.unflatten(structure, leaves), logits)
        possible = jnp.any(adjusted > -jnp.inf, axis=-1)
        # A row without a token to draw is drawn from as it was: its problem ends with this step.
        adjusted = jnp.where(possible[:, None], adjusted, logits)
        return *sample(logits, uniform, temperature, top_k, top_p, adjusted), possible

    return sharding.by_rows(rows, logits, _uniform(threads), *parameters, *leaves)


def _kept(program: Program, state: State, tiles: schedule.Tiles, threads: books.Threads) -> tuple[Any, Any]:
    """What the protocol keeps of each tile's problem, and of its line beside the book: trees of arrays [B, ...]."""
    at = jnp.minimum(tiles.problem, program.sizes.problems - 1)
    shared = jax.tree.map(lambda field: field[at], state.books.shared)
    return shared, jax.tree.map(lambda kept: kept[at, threads.line.first], state.bulk)


def _uniform(threads: books.Threads) -> Array:
    """One uniform number per tile [B], from the thread's draw key and the number of the draw."""

    def draw(key, number):
        return jax.random.uniform(
            jax.random.wrap_key_data(books.fold(key, number), impl=books.RANDOM), dtype=jnp.float32
        )

    return jax.vmap(draw)(threads.line.draw_key, threads.cursor.generated)


@books.pytree
class Seen:
    """The protocol's answers to the tokens that the tiles drew.

    Attributes:
        own: the threads' own state; `kept`: for which of them it is kept.
        token: what they go on with.
        event: of the protocol, 0 for none.
        draws: a token was sampled at all.
        finite: neither the tile's hidden states nor its logits hold NaN or infinity.
        drawn: the sampled token, [B] each; meaningless for tiles that do not draw.
    """

    own: Any
    kept: Bool[Array, "B"]
    token: Int[Array, "B"]
    event: Int[Array, "B"]
    draws: Bool[Array, "B"]
    finite: Bool[Array, "B"]
    drawn: Drawn


def observe(
    program: Program, state: State, tiles, threads: books.Threads, drawn: Drawn, draws: Bool[Array, "B"], finite
) -> tuple[Any, Seen]:
    """Show the drawn tokens to the protocol. Returns the bulk state of all lines and the protocol's answers."""
    protocol, (shared, lines_of) = program.protocol, _kept(program, state, tiles, threads)
    row = jnp.where(draws, tiles.problem, program.sizes.problems)
    kept, own = jax.vmap(protocol.watch)(lines_of, threads.own, drawn)
    put = lambda old, new: old.at[row, threads.line.first].set(new.astype(old.dtype), mode="drop")
    bulk = jax.tree.map(put, state.bulk, kept)
    own, token, event = jax.vmap(protocol.observe)(shared, own, drawn)
    return bulk, Seen(own, draws, token, jnp.where(draws, event, 0), draws, finite, drawn)


def score(
    program: Program, state: State, placed: Book, tiles, places, threads: books.Threads, seen: Seen, logits
) -> Seen:
    """Show the protocol the log-probability of the token that comes next in a scored thread's message; for decode steps."""
    protocol, sizes = program.protocol, program.sizes
    left = threads.inbox.left - (tiles.count - schedule.leading(threads))
    scored = tiles.busy & (left > 0) & jax.vmap(protocol.scored)(threads.own)

    def read():
        ahead = dataclasses.replace(places, message=places.message + 1)
        token = messages.read(placed, state.log.queued[:, 0], tiles, ahead, sizes)[:, 0]
        pick = lambda logits, token: jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        new = jax.vmap(protocol.score)(threads.own, token, sharding.by_rows(pick, logits, token))
        return jax.tree.map(lambda old, new: masked(scored, old, new), seen.own, new)

    own = jax.lax.cond(jnp.any(scored), read, lambda: seen.own)
    return dataclasses.replace(seen, own=own, kept=seen.kept | scored)
