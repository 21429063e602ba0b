"""The product of a token with itself, where a mixer weighs the present apart from the past.

RWKV-6 gives its own token a bonus, Mamba-3 half of a trapezoid. Over pairs such a product takes the
place of a diagonal entry; a recurrence is corrected by the difference. No transport acts on it, and
a static bias as on every other pair. Where a token has several queries and keys (`ranks`), each of
its queries has such a product with each of its keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.types import wide


def product(query: jax.Array, key: jax.Array, lanes: L.Lanes) -> jax.Array:
    """query [B,T,H,K] times key [B,T,N,K], each token with itself: [B,T,H], wide."""
    query = _loud(query, lanes)
    return jnp.sum(wide(query) * pairs.repeat_heads(wide(key), query.shape[2]), -1)


def products(query: jax.Array, key: jax.Array, lanes: L.Lanes, ranks: int) -> jax.Array:
    """query, key [B,T R,H,K], R of each to a token in a row: [B,T R,H,R], wide, each query times
    the R keys of its own token."""
    query, key = _tokens(_loud(query, lanes), ranks), _tokens(key, ranks)
    out = jnp.einsum("btrhk,btshk->btrhs", query, key,
                     preferred_element_type=wide(query[:0]).dtype)
    return out.reshape(out.shape[0], -1, *out.shape[3:])


def corrected(out: jax.Array, own: jax.Array | None, query: jax.Array, key: jax.Array,
              value: jax.Array, lanes: L.Lanes, read_first: bool) -> jax.Array:
    """out [B,T,H,V] of a recurrence, with the product `own` [B,T,H] (None: as it is) in place of
    its own, which it has not made where it is read before the write.

    own [B,T,H,R]: `products`, of which the recurrence has made those with keys up to the query's
    (it must not be one that is read first).
    """
    if own is None:
        return out
    if own.ndim == 3:
        weight = own - (0.0 if read_first else product(query, key, lanes))
    else:
        ranks = own.shape[-1]
        place = (jnp.arange(own.shape[1]) % ranks)[:, None, None]
        made = jnp.where(jnp.arange(ranks) <= place, products(query, key, lanes, ranks), 0.0)
        weight = own - made
    for bias in lanes.bias:
        if isinstance(bias, L.Toeplitz):
            here = jnp.zeros(out.shape[:2], weight.dtype)
            factor = jnp.exp(wide(bias.kernel(bias.params, here)))
            weight = weight * factor.reshape(*factor.shape, *[1] * (weight.ndim - 3))
    value = pairs.repeat_heads(value, out.shape[2])
    if own.ndim == 3:
        return wide(out) + weight[..., None] * value
    further = jnp.einsum("btrhs,btshv->btrhv", _tokens(weight, ranks), wide(_tokens(value, ranks)))
    return wide(out) + further.reshape(out.shape)


def _loud(query: jax.Array, lanes: L.Lanes) -> jax.Array:
    """The query with the amplitude of the rotation, where there is one."""
    rotation = getattr(lanes.transport, "rotation", lanes.transport)
    return endpoint.amplified(query, rotation) if isinstance(rotation, L.Rotation) else query


def _tokens(x: jax.Array, ranks: int) -> jax.Array:
    """[B,T R,...] -> [B,T,R,...]."""
    return x.reshape(x.shape[0], -1, ranks, *x.shape[2:])
