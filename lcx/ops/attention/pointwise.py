"""Attention whose weights are a function of each pair's logit alone: no softmax over the row.

A kernel f(z) exp(bias), ReLU^2 of z + bias, a decay times a level: `weigh` says which. Chunks of
queries meet all keys and are recomputed in the backward pass; nothing of size [T,S] is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.types import wide

# Where all weights of a layer are at most this many numbers, one square is quicker than chunks.
SMALL = 2**23
CHUNK = 128


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, weigh: Callable, *,
           rotary_dim: int, scale: float = 1.0, rows: Any = None, normalise: Callable | None = None,
           transported: bool = True, chunk: int | None = None) -> jax.Array:
    """Queries [B,T,H,K] over keys [B,S,N,K] and values [B,S,N or H,V] -> [B,T,H,V], wide.

    weigh(z, bias, query seq, key seq, rows) -> weights [B,H,T,S] of logits z (temperature x scale
    x transported products) and the sum of the bias lanes, 0 where there are none; both are finite
    where a pair may not meet, whose weight is dropped. An operator on the logits takes z + bias and
    leaves no bias. rows: a pytree of arrays [B,T,...] of the queries. normalise(out, sum of the
    weights [B,T,H,1]) -> out, the weights taken without transport unless `transported`.
    """
    batch, length, heads, _ = queries.query.shape
    value = keys.value
    if isinstance(lanes.value, L.ValueRotation):
        value = endpoint.turn_values(value, keys.seq, lanes.value)

    def tile(tokens, first) -> jax.Array:
        part, temperature, rows = tokens
        part = part.replace(slot=queries.slot + first)
        allowed = pairs.mask(part.seq, keys.seq)[:, None]
        factor = scale
        if temperature is not None:
            factor = scale * jnp.swapaxes(wide(temperature.factor), 1, 2)[..., None]
        bias = pairs.log_bias(part, keys, lanes.bias, allowed[:, 0], scale)
        bias = 0.0 if bias is None else jnp.where(allowed, bias, 0.0)

        def weights(scores):
            logits, term = scores * factor, bias
            if lanes.logits is not None:
                logits = logits + bias
                term = jnp.broadcast_to(bias, logits.shape)
                logits = lanes.logits.function(lanes.logits.params, logits, term, allowed[:, 0],
                                               pairs.pair_distance(part.seq, keys.seq))
                term = 0.0
            found = weigh(logits, term, part.seq, keys.seq, rows)
            return jnp.where(allowed, found, 0.0)

        found = weights(pairs.scores(part, keys, lanes.transport, rotary_dim))
        out = pairs.mixed(found, value)
        if isinstance(lanes.value, L.ValueTable):
            out += pairs.table_values(found, part.seq, keys.seq, lanes.value)
        if isinstance(lanes.value, L.ValueRotation):
            out = endpoint.turn_values(out, part.seq, lanes.value, sign=-1)
        if normalise is None:
            return out
        if not transported and lanes.transport is not None:
            found = weights(pairs.inner(part.query, keys.key))
        return normalise(out, jnp.swapaxes(jnp.sum(found, axis=-1), 1, 2)[..., None])

    if chunk is None:
        small = batch * heads * length * keys.key.shape[1] <= SMALL
        chunk = length if small else CHUNK
    tokens = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    return pairs.over_queries(tile, (tokens, lanes.temperature, rows), chunk)
