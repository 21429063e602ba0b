"""Query-key products whose channels fade between the tokens: Wall, xPos, GLA inside a softmax."""

import jax
import jax.numpy as jnp

from lcx.integral import Integral, fallen, gap

BLOCK = 16  # queries that share one reference point


def decayed_scores(query: jax.Array, key: jax.Array, query_decay: Integral, key_decay: Integral, *,
                   offset: int | jax.Array = 0) -> jax.Array:
    """z_ij = sum_k q_ik k_jk exp(P_ik - P_jk), P the integral of log gates <= 0; no scale.

    query [B,T,H,K]; key [B,S,H,K]; integrals [B,T,N,K] and [B,S,N,K], N dividing H; offset: the
    key slot of the first query, may be traced. Returns [B,H,T,S], at least float32; where j > i
    it is finite and means nothing: mask it.

    Neither exp(P_i) nor exp(-P_j) can be held for long sequences. Blocks of queries are decayed
    from their first token on and all earlier keys up to it (both factors <= 1), as matmuls; the
    keys of a block itself are weighed pair by pair.
    """
    length, heads, slots = query.shape[1], query.shape[2], key.shape[1]
    blocks = -(-length // BLOCK)

    def split(x):  # [B,T,...] -> [B,blocks,BLOCK,...]
        pad = [(0, 0), (0, blocks * BLOCK - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, pad, mode="edge").reshape(x.shape[0], blocks, BLOCK, *x.shape[2:])

    repeat = lambda x: jnp.repeat(x, heads // x.shape[-2], axis=-2)
    fall = lambda a, b: repeat(jnp.exp(fallen(gap(a, b))))
    at = lambda integral, index: jax.tree.map(lambda a: a[index], integral)
    query, query_decay = split(query), jax.tree.map(split, query_decay)
    entry = at(query_decay, (slice(None), slice(None), slice(0, 1)))  # [B,blocks,1,N,K]
    left = query * fall(query_decay, entry)
    right = key[:, None] * fall(entry, at(key_decay, (slice(None), None)))
    outer = jnp.einsum("bnchk,bnshk->bhncs", left, right)

    own = offset + jnp.arange(blocks)[:, None] * BLOCK + jnp.arange(BLOCK)  # slots [blocks,BLOCK]
    near = (slice(None), jnp.minimum(own, slots - 1))  # clipped ones are beyond every column below
    pair = fall(at(query_decay, (slice(None), slice(None), slice(None), None)),
                at(at(key_decay, near), (slice(None), slice(None), None)))
    inner = jnp.einsum("bnchk,bndhk,bncdhk->bhncd", query, key[near], pair)
    place = jnp.arange(slots) - own[:, :1]  # of each slot within each block [blocks,S]
    index = jnp.clip(place, 0, BLOCK - 1)[None, None, :, None]
    inner = jnp.take_along_axis(inner, jnp.broadcast_to(index, outer.shape), -1)
    inside = (place >= 0) & (place < BLOCK)
    out = jnp.where(inside[:, None], inner, outer)
    return out.reshape(*out.shape[:2], blocks * BLOCK, slots)[:, :, :length]
