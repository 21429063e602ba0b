"""A cache of raw keys: fixed buffers, written in arrival order, read by order and never by slot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.ops.pairs import Integrals, Keys, extras_of, integrals, path_of


@struct.dataclass
class KeyCache:
    """keys: buffers of S slots (order -1 where empty); used: slots written; total: the integrals
    up to the newest token.

    With a window the buffers slide: the newest token sits in the last slot.
    """

    keys: Keys
    used: jax.Array
    total: Integrals
    window: int | None = struct.field(pytree_node=False, default=None)

    def append(self, new: Keys) -> tuple[Keys, jax.Array, KeyCache]:
        """See `append`."""
        return append(self, new)


def like(lanes: L.Lanes, batch: int, heads: int, key_dim: int, value_dim: int, dtype,
         value_heads: int | None = None) -> Keys:
    """One token's keys as `init` wants them, with what lanes of these shapes need to keep."""
    lanes = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), lanes)
    seq = L.sequence(1, 1, ids=jnp.zeros((1, 1, lanes.axes)))
    return Keys(jnp.zeros((batch, 1, heads, key_dim), dtype),
                jnp.zeros((batch, 1, value_heads or heads, value_dim), dtype), seq,
                integrals(lanes), path_of(lanes.transport), extras_of(lanes))


def init(like: Keys, batch: int, slots: int, window: int | None = None) -> KeyCache:
    """Empty buffers for `batch` rows with the structure of `like` ([1 or B,1,...] arrays)."""
    slots = slots if window is None else min(window, slots)
    like = _rows(like, batch)
    empty = jax.tree.map(lambda a: jnp.zeros((batch, slots, *a.shape[2:]), a.dtype), like)
    order = jnp.full_like(empty.seq.order, -1)
    total = jax.tree.map(lambda a: jnp.zeros((batch, *a.shape[2:]), a.dtype), like.integral)
    return KeyCache(empty.replace(seq=empty.seq.replace(order=order)), jnp.zeros((), jnp.int32),
                    total, window)


def append(cache: KeyCache, new: Keys) -> tuple[Keys, jax.Array, KeyCache]:
    """Keys to attend to (old and new), the slot of the first new token, and the next cache.

    Writing past the end of a full cache poisons the values with NaN: never a silent clamp.
    """
    batch, slots = cache.keys.key.shape[:2]
    length = new.key.shape[1]
    axes = cache.keys.seq.ids.shape[-1]  # further axes of the ids are not read
    new = new.replace(seq=new.seq.replace(ids=new.seq.ids[..., :axes]))
    new = jax.tree.map(lambda a, old: jnp.broadcast_to(a, (*a.shape[:2], *old.shape[2:]))
                       .astype(old.dtype), _rows(new, batch), cache.keys)
    total = jax.tree.map(lambda a: a[:, -1], new.integral)
    used = cache.used + length
    if cache.window is not None:
        keys = jax.tree.map(lambda old, a: jnp.concatenate([old, a], 1), cache.keys, new)
        kept = jax.tree.map(lambda a: a[:, -slots:], keys)
        if slots < cache.window:  # made for shorter streams than the window
            keys = keys.replace(value=jnp.where(used > slots, jnp.nan, keys.value))
        return keys, jnp.int32(slots), cache.replace(keys=kept, used=used, total=total)
    if length > slots:
        raise ValueError(f"{length} tokens do not fit a cache of {slots}; "
                         "give init_state a larger max_length")
    keys = jax.tree.map(
        lambda old, a: jax.lax.dynamic_update_slice_in_dim(old, a, cache.used, axis=1),
        cache.keys, new)
    keys = keys.replace(value=jnp.where(used > slots, jnp.nan, keys.value))
    return keys, cache.used, cache.replace(keys=keys, used=used, total=total)


def _rows(keys: Keys, batch: int) -> Keys:
    """Every leaf with `batch` rows, a segment for each token, and no request length."""
    seq = keys.seq
    segment = jnp.ones_like(seq.order) if seq.segment is None else seq.segment
    keys = keys.replace(seq=seq.replace(segment=segment, length=None))
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), keys)
