"""The product of a token with itself, where a mixer weighs the present apart from the past.

RWKV-6 gives its own token a bonus, Mamba-3 half of a trapezoid. Over pairs such a product takes the
place of a diagonal entry; a recurrence is corrected by the difference. No transport acts on it, and
a static bias as on every other pair.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.types import wide


def product(query: jax.Array, key: jax.Array, lanes: L.Lanes) -> jax.Array:
    """query [B,T,H,K] times key [B,T,N,K], each token with itself: [B,T,H], wide."""
    rotation = getattr(lanes.transport, "rotation", lanes.transport)
    if isinstance(rotation, L.Rotation):
        query = endpoint.amplified(query, rotation)
    return jnp.sum(wide(query) * pairs.repeat_heads(wide(key), query.shape[2]), -1)


def corrected(out: jax.Array, own: jax.Array | None, query: jax.Array, key: jax.Array,
              value: jax.Array, lanes: L.Lanes, read_first: bool) -> jax.Array:
    """out [B,T,H,V] of a recurrence, with the product `own` [B,T,H] (None: as it is) in place of
    its own, which it has not made where it is read before the write."""
    if own is None:
        return out
    weight = own - (0.0 if read_first else product(query, key, lanes))
    for bias in lanes.bias:
        if isinstance(bias, L.Toeplitz):
            here = jnp.zeros(out.shape[:2], weight.dtype)
            weight = weight * jnp.exp(wide(bias.kernel(bias.params, here)))
    return wide(out) + weight[..., None] * pairs.repeat_heads(value, out.shape[2])
