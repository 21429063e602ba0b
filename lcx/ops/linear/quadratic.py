"""Linear attention as weights of pairs: every bias and transport, over a cache of raw keys.

The weight of key j for query i is <q_i, transported k_j> exp(bias_ij). What has no finite-rank
state runs here, and the recurrent forms are tested against it. Chunks of queries meet all keys, so
that nothing of size [T,S] is held for a long T; they are recomputed in the backward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import pairs

# Where all weights of a layer are at most this many numbers, one square is quicker than chunks.
SMALL = 2**23
CHUNK = 128


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, *, rotary_dim: int,
           eps: float | None = None) -> jax.Array:
    """Queries [B,T,H,K] over keys [B,S,N,K] and values [B,S,N or H,V] -> [B,T,H,V], wide.

    eps: divide by eps + the sum of the same weights without transport, whose features may be
    positive where the transported ones are not (RoFormer, arXiv:2104.09864); None: do not divide.
    A temperature is ignored.
    """
    batch, length, heads, _ = queries.query.shape

    def tile(part: pairs.Queries) -> jax.Array:
        allowed = pairs.mask(part.seq, keys.seq)
        scores = pairs.scores(part, keys, lanes.transport, rotary_dim)
        factor = allowed[:, None].astype(scores.dtype)
        bias = pairs.log_bias(part, keys, lanes.bias, allowed, 1.0)
        if bias is not None:  # masked before the exp, where a future pair may overflow
            factor = jnp.exp(jnp.where(allowed[:, None], bias, -jnp.inf))
        out = pairs.mixed(scores * factor, keys.value)
        if eps is None:
            return out
        if lanes.transport is not None:
            scores = pairs.inner(part.query, keys.key)
        total = jnp.sum(scores * factor, axis=-1)
        return out / (jnp.swapaxes(total, 1, 2)[..., None] + eps)

    if length <= CHUNK or batch * heads * length * keys.key.shape[1] <= SMALL:
        return tile(queries)
    return over_queries(tile, queries, CHUNK)


def over_queries(tile, queries: pairs.Queries, chunk: int) -> jax.Array:
    """tile(Queries of `chunk` tokens) -> [B,chunk,H,V], one chunk after another: [B,T,H,V]."""
    length = queries.query.shape[1]
    count = -(-length // chunk)

    def split(a):  # [B,T,...] -> [count,B,chunk,...]; padded queries repeat the last one
        widths = [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (a.ndim - 2)
        a = jnp.pad(a, widths, mode="edge")
        return jnp.moveaxis(a.reshape(a.shape[0], count, chunk, *a.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(piece):
        part, number = piece
        seq = part.seq.replace(length=queries.seq.length)
        return tile(part.replace(seq=seq, slot=queries.slot + number * chunk))

    plain = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    out = jax.lax.map(one, (jax.tree.map(split, plain), jnp.arange(count)))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :length]
