"""A bounded cache of raw keys: the first tokens of the newest document and the last ones of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx.ops.attention import cache
from lcx.ops.pairs import Integrals, Keys


@struct.dataclass
class SinkCache:
    """sinks: slot i holds token number i of the newest document (order -1 where there is none);
    recent: the window. A sink is not counted again in the window's buffer."""

    sinks: Keys
    recent: cache.KeyCache

    @property
    def total(self) -> Integrals:
        """The integrals up to the newest token."""
        return self.recent.total

    def append(self, new: Keys) -> tuple[Keys, jax.Array, SinkCache]:
        """Keys to attend to (sinks, window, new), the slot of the first new token, next cache."""
        count, slots = self.sinks.key.shape[1], self.recent.keys.key.shape[1]
        keys, slot, recent = self.recent.append(new)
        new = jax.tree.map(lambda a: a[:, slots:], keys)
        newest = new.seq.segment[:, -1:]
        fits = ((new.seq.index[:, None] == jnp.arange(count)[:, None])
                & (new.seq.segment == newest)[:, None])  # [B,count,T]
        found, place = fits.any(-1), jnp.argmax(fits, -1)

        def pick(old, a):
            shape = (*found.shape, *[1] * (a.ndim - 2))
            a = jnp.take_along_axis(a, place.reshape(shape), 1)
            return jnp.where(found.reshape(shape), a, old)

        sinks = jax.tree.map(pick, self.sinks, new)
        order = jnp.where(sinks.seq.segment == newest, sinks.seq.order, -1)
        sinks = sinks.replace(seq=sinks.seq.replace(order=order))
        seq = recent.keys.seq
        order = jnp.where(seq.index < count, -1, seq.order)
        recent = recent.replace(keys=recent.keys.replace(seq=seq.replace(order=order)))
        keys = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), self.sinks, keys)
        return keys, slot + count, SinkCache(sinks, recent)


def init(like: Keys, batch: int, slots: int, window: int, sinks: int) -> SinkCache:
    """Empty buffers for `batch` rows with the structure of `like`."""
    return SinkCache(cache.init(like, batch, sinks).keys, cache.init(like, batch, slots, window))
