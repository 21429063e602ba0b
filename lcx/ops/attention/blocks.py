"""Blocks of consecutive tokens of a document: their means, their last tokens, where they lie."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx.ops import endpoint, pairs
from lcx.types import wide


@struct.dataclass
class Blocks:
    """The blocks of `size` tokens, counted from the start of each document, among key slots.

    number [B,S]: block of each slot; held [B,S]: whether a slot holds a token; place [B,C]: which
    block of its document it is; last [B,C]: slot of its last token; whole [B,C]: it has all its
    tokens. C blocks, as many as there could be; those beyond the true ones hold nothing.
    """

    number: jax.Array
    held: jax.Array
    place: jax.Array
    last: jax.Array
    whole: jax.Array
    size: int = struct.field(pytree_node=False)

    def mean(self, x: jax.Array) -> jax.Array:
        """Means over the tokens of whole blocks, wide: [B,S,...] -> [B,C,...]."""
        x = jnp.where(self.held.reshape(*self.held.shape, *[1] * (x.ndim - 2)), wide(x), 0.0)
        return self._sum(x) / self.size

    def _sum(self, x: jax.Array) -> jax.Array:
        number = jnp.broadcast_to(self.number, x.shape[:2])
        add = lambda x, number: jax.ops.segment_sum(x, number, self.place.shape[1])
        return jax.vmap(add)(x, number)

    def spread(self, chosen: jax.Array) -> jax.Array:
        """What is said of blocks, said of their slots: [B,H,T,C] -> [B,H,T,S]."""
        number = jnp.broadcast_to(self.number, (chosen.shape[0], self.number.shape[1]))
        return jnp.take_along_axis(chosen, number[:, None, None], axis=-1)

    def at_last(self, tree: Any) -> Any:
        """Arrays [.,S,...] at the last token of each block: [.,C,...]."""
        def take(a):
            rows = max(a.shape[0], self.last.shape[0])
            a = jnp.broadcast_to(a, (rows, *a.shape[1:]))
            last = jnp.broadcast_to(self.last, (rows, self.last.shape[1]))
            return jnp.take_along_axis(a, last.reshape(*last.shape, *[1] * (a.ndim - 2)), axis=1)
        return jax.tree.map(take, tree)


def blocks_of(keys: pairs.Keys, size: int) -> Blocks:
    """The blocks of the keys of a call, which lie in the order of their arrival."""
    seq, slots = keys.seq, keys.key.shape[1]
    held = seq.order >= 0
    first = held & (seq.index % size == 0)
    number = jnp.maximum(jnp.cumsum(first.at[:, 0].set(True), -1) - 1, 0)
    # Where documents may start anywhere, each slot could start a block.
    count = slots if seq.segment is not None else -(-slots // size) + 1
    nothing = jnp.zeros((number.shape[0], count), jnp.int32)
    rows = Blocks(number, held, nothing, nothing, nothing, size)
    slot = jnp.broadcast_to(jnp.arange(slots), number.shape)
    largest = jax.vmap(lambda x, n: jax.ops.segment_max(x, n, count))
    last = jnp.maximum(largest(jnp.where(held, slot, -1), number), 0)
    tokens = rows._sum(held.astype(jnp.int32))
    rows = rows.replace(last=last)
    place = jnp.where(tokens > 0, rows.at_last(seq.index) // size, -1)
    return rows.replace(place=place, whole=tokens == size)


def scores(queries: pairs.Queries, keys: pairs.Keys, transport, rotary_dim: int,
           blocks: Blocks) -> jax.Array:
    """Means over each block of the transported inner products, unscaled: [B,H,T,C], wide.

    Where the transport maps single keys it is the product with the mean of the mapped keys.
    """
    query, key = queries.query, keys.key
    if isinstance(transport, endpoint.TRANSPORTS):
        query, key = endpoint.mapped(queries, keys, transport, rotary_dim)
    elif transport is not None:
        pair = pairs.scores(queries, keys, transport, rotary_dim)
        return jnp.moveaxis(blocks.mean(jnp.moveaxis(pair, -1, 1)), 1, -1)
    return pairs.inner(wide(query), blocks.mean(key))


def sequence_of(keys: pairs.Keys, blocks: Blocks):
    """The blocks as a sequence of their last tokens; unfinished ones are empty slots (order -1)."""
    seq = blocks.at_last(keys.seq.replace(length=None))
    return seq.replace(order=jnp.where(blocks.whole, seq.order, -1))
