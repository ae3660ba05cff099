"""The visibility of packed rows: which entry sees which, for blocks of entries, without an array of all pairs.

    key k is visible to query q  iff  sees[owner_q, owner_k] and clock_k < clock_q + (owner_q == owner_k)

Axes: B rows, S entries of a row, U threads of a row, Q and N entries of two blocks.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

WORD = 32  # visibility of 32 threads is one uint32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entries:
    """What the rule asks of entries, of whole rows or of blocks, [B, S] or [B, S, words].

    Attributes:
      owner: thread of each entry; -1 for padding, which sees nothing and is not seen.
      clock: clock of each entry.
      seen: the threads that each entry's thread may see, a bit each.
      bit: the bit of each entry's own thread.
    """

    owner: Int[Array, "*B S"]
    clock: Int[Array, "*B S"]
    seen: UInt32[Array, "*B S _"]
    bit: UInt32[Array, "*B S _"]

    def __getitem__(self, span: slice) -> "Entries":
        """The entries of a part of each row."""
        return jax.tree.map(lambda array: array[:, span], self)


def entries(owner: Int[Array, "B S"], clock: Int[Array, "B S"], sees: Bool[Array, "B U U"]) -> Entries:
    """The entries of packed rows, see `apr_jax.train.packing.Rows`.

    Args:
      owner: thread of each entry, -1 for padding.
      clock: clock of each entry.
      sees: visibility among the U threads of a row.
    """
    words = -(-sees.shape[1] // WORD)
    sees = jnp.pad(sees, ((0, 0), (0, 0), (0, words * WORD - sees.shape[1]))).reshape(*sees.shape[:2], words, WORD)
    bits = jnp.sum(sees.astype(jnp.uint32) << jnp.arange(WORD, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
    seen = jax.vmap(lambda table, row: table[row])(bits, jnp.maximum(owner, 0))  # [B, S, words]
    seen = jnp.where((owner >= 0)[..., None], seen, 0)
    in_word = (owner[..., None] >= 0) & (owner[..., None] // WORD == jnp.arange(words, dtype=owner.dtype))
    bit = jnp.where(in_word, jnp.uint32(1) << (owner[..., None] % WORD).astype(jnp.uint32), 0)
    return Entries(owner, clock, seen, bit)


def visible(queries: Entries, keys: Entries) -> Bool[Array, "*B Q N"]:
    """The mask of two blocks of the same rows."""
    own = queries.owner[..., :, None] == keys.owner[..., None, :]
    before = keys.clock[..., None, :] < queries.clock[..., :, None] + own.astype(keys.clock.dtype)
    words = range(keys.bit.shape[-1])
    related = [(queries.seen[..., :, None, w] & keys.bit[..., None, :, w]) != 0 for w in words]
    return jax.tree.reduce(jnp.logical_or, related) & before
