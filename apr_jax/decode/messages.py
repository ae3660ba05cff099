"""Messages: event handlers compose them of pieces; the tokens are read when they are fed, and never copied in between.

Axes: M threads, Z pieces, B tiles, C tokens of a tile, R pages, T log entries.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.decode.schedule import Places, Tiles
from apr_jax.decode.sizes import Sizes
from apr_jax.record import Stop


def compose(
    book: Book,
    to: Int[Array, "n"],
    kind: Int[Array, "n"],
    thread: Int[Array, "n"],
    start: Int[Array, "n"],
    length: Int[Array, "n"],
    valid: Bool[Array, "n"],
) -> Book:
    """Append message pieces. Each thread in `to` gets its valid pieces as its message; they must be adjacent in the arguments.

    No tokens are copied: they are read when they are fed. A full table of pieces ends the problem.

    Args:
        to: the receiving thread of each of n pieces.
        kind, thread, start, length: see `book.Pieces`.
        valid: the piece exists; other pieces are skipped.
    """
    place = book.piece_count + jnp.cumsum(valid.astype(jnp.int32)) - 1
    size = book.pieces.kind.shape[0]
    full = book.piece_count + jnp.sum(valid) > size
    place = jnp.where(valid & ~full, place, size)
    mine = (to[None, :] == books.numbers(book)[:, None]) & valid[None, :]  # [M, n]
    before = jnp.cumsum(jnp.where(valid, length, 0)) - length
    first = jnp.min(
        jnp.where(mine, before[None, :], jnp.iinfo(jnp.int32).max), axis=1
    )  # tokens before the thread's message
    offset = before - first[to]
    fields = (("kind", kind), ("thread", thread), ("start", start), ("offset", offset), ("length", length))
    pieces = books.Pieces(
        **{name: getattr(book.pieces, name).at[place].set(new.astype(jnp.int32), mode="drop") for name, new in fields}
    )
    addressed = jnp.any(mine, axis=1)
    threads = book.threads.where(
        addressed,
        begin=jnp.min(jnp.where(mine, place[None, :], size), axis=1),
        end=jnp.max(jnp.where(mine, place[None, :] + 1, 0), axis=1),
        done=0,
        left=jnp.sum(jnp.where(mine, length[None, :], 0), axis=1),
    )
    count = book.piece_count + jnp.where(full, 0, jnp.sum(valid))
    return book.replace(threads=threads, pieces=pieces, piece_count=count).halt(full, Stop.MESSAGES_FULL)


def read(book: Book, log_tokens, tiles: Tiles, places: Places, sizes: Sizes) -> Int[Array, "B C"]:
    """The tokens that the tiles feed: an unfed or handed token, or the next tokens of the message.

    Args:
        log_tokens: Int [P, T], the token of every log entry.
    """
    threads, pieces = book.threads, book.pieces
    at = jnp.minimum(tiles.problem, book.active.shape[0] - 1)
    here = (at, tiles.thread)
    offset = jnp.maximum(places.message, 0) + threads.inbox.done[here][:, None]  # [B, C]
    number = jnp.arange(pieces.kind.shape[1])[None]
    mine = (number >= threads.inbox.begin[here][:, None]) & (number < threads.inbox.end[here][:, None])  # [B, Z]
    start, length = pieces.offset[at], pieces.length[at]  # [B, Z]
    inside = (offset[:, :, None] >= start[:, None, :]) & (offset[:, :, None] < (start + length)[:, None, :])
    piece = jnp.argmax(mine[:, None, :] & inside, axis=2)  # [B, C]
    row = at[:, None]
    source = pieces.start[row, piece] + offset - pieces.offset[row, piece]
    entry = find_entry(book, at, pieces.thread[row, piece], source, sizes)
    kind = pieces.kind[row, piece]
    token = jnp.where(
        kind == books.PROMPT, book.prompt[row, jnp.minimum(source, sizes.prompt - 1)], log_tokens[row, entry]
    )
    if sizes.host:
        said = book.store[row, jnp.minimum(source, sizes.host - 1)]
        token = jnp.where(kind == books.HOST, said, token)
    templates = jnp.array(book.protocol.templates, jnp.int32)
    token = jnp.where(kind == books.TEMPLATE, templates[jnp.minimum(source, templates.shape[0] - 1)], token)
    return jnp.where(places.message < 0, threads.drawn.token[here][:, None], token)


def find_entry(book: Book, at: Int[Array, "B"], thread: Int[Array, "B C"], ordinal: Int[Array, "B C"], sizes: Sizes):
    """Log entries, Int [B, C], of the `ordinal`-th tokens of threads; compares all log pages to find the one that holds each.

    Args:
        at: problem of each row.
        ordinal: index of the token in its thread's log, from 0 on.
    """
    owner, first = book.log_owner[at][:, None, :], book.log_first[at][:, None, :]  # [B, 1, R]
    holds = (owner == thread[:, :, None]) & (
        first == (ordinal // sizes.log_page_size * sizes.log_page_size)[:, :, None]
    )
    return jnp.argmax(holds, axis=2) * sizes.log_page_size + ordinal % sizes.log_page_size
