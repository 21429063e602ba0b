"""Linear attention as weights of pairs: every bias and transport, over a cache of raw keys.

The weight of key j for query i is <q_i, transported k_j> exp(bias_ij). What has no finite-rank
state runs here, and the recurrent forms are tested against it. Chunks of queries meet all keys, so
that nothing of size [T,S] is held for a long T; they are recomputed in the backward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs

# Where all weights of a layer are at most this many numbers, one square is quicker than chunks.
SMALL = 2**23
CHUNK = 128


def attend(
    queries: pairs.Queries,
    keys: pairs.Keys,
    lanes: L.Lanes,
    *,
    rotary_dim: int,
    eps: float | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """Queries [B,T,H,K] over keys [B,S,N,K] and values [B,S,N or H,V] -> [B,T,H,V], wide.

    eps: divide by eps + the sum of the same weights without transport, whose features may be
    positive where the transported ones are not (RoFormer, arXiv:2104.09864); None: do not divide.
    A temperature is ignored; chunk: queries at once, all of them where the square is small.
    """
    batch, length, heads, _ = queries.query.shape
    value = keys.value
    if isinstance(lanes.value, L.ValueRotation):
        value = endpoint.turn_values(value, keys.seq, lanes.value)

    def tile(part: pairs.Queries, first) -> jax.Array:
        part = part.replace(slot=queries.slot + first)
        out, total = sums(part, keys.replace(value=value), lanes, rotary_dim, eps is not None)
        if isinstance(lanes.value, L.ValueRotation):
            out = endpoint.turn_values(out, part.seq, lanes.value, sign=-1)
        return out if eps is None else out / (total + eps)

    if chunk is None:
        small = batch * heads * length * keys.key.shape[1] <= SMALL
        chunk = length if small else CHUNK
    tokens = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    return pairs.over_queries(tile, tokens, chunk)


def sums(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, rotary_dim: int,
         totals: bool) -> tuple[jax.Array, jax.Array | None]:
    """Sums of weighted values [B,T,H,V] and of the weights without transport [B,T,H,1], wide.

    Values are taken as they stand: a rotation of them is up to the caller.
    """
    scores, factor = _parts(queries, keys, lanes, rotary_dim)
    out = pairs.mixed(scores * factor, keys.value)
    if isinstance(lanes.value, L.ValueTable):
        out += pairs.table_values(scores * factor, queries.seq, keys.seq, lanes.value)
    if not totals:
        return out, None
    if lanes.transport is not None:
        scores = pairs.inner(queries.query, keys.key)
    total = jnp.sum(scores * factor, axis=-1)
    return out, jnp.swapaxes(total, 1, 2)[..., None]


def weights(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, rotary_dim: int) -> jax.Array:
    """The weights alone [B,H,T,S], wide; 0 where a query may not read a key."""
    scores, factor = _parts(queries, keys, lanes, rotary_dim)
    return scores * factor


def _parts(queries, keys, lanes, rotary_dim):
    """Transported products [B,H,T,S] and the factors of the biases, 0 where there is no weight."""
    allowed = pairs.mask(queries.seq, keys.seq)
    scores = pairs.scores(queries, keys, lanes.transport, rotary_dim)
    if queries.own is not None:
        itself = queries.seq.order[..., :, None] == keys.seq.order[..., None, :]
        own = jnp.swapaxes(queries.own, 1, 2)
        if own.ndim == 3:
            own = own[..., None]
        else:  # the keys of each token lie in as many slots in a row
            own = jnp.tile(own, scores.shape[-1] // own.shape[-1])
        scores = jnp.where(itself[:, None], own, scores)
    factor = allowed[:, None].astype(scores.dtype)
    bias = pairs.log_bias(queries, keys, lanes.bias, allowed, 1.0)
    if bias is not None:  # masked before the exp, where a future pair may overflow
        factor = jnp.exp(jnp.where(allowed[:, None], bias, -jnp.inf))
    return scores, factor
