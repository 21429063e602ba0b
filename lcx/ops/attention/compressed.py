"""Attention to blocks of tokens, each compressed to the mean of its keys and of its values.

A block is seen once it is whole and past. Its logit is the mean of the transported products of its
tokens, times temperature and scale, plus the bias at its last token; a query that sees no block
reads nothing (arXiv:2502.11089, as flash-linear-attention runs it).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.ops.attention import blocks as B
from lcx.ops.attention.chunked import CHUNK, mapped_once
from lcx.ops.attention.weights import over_visible
from lcx.types import wide


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, *, rotary_dim: int,
           scale: float, block: int, chunk: int | None = None) -> jax.Array:
    """Queries [B,T,H,K] over the blocks of keys [B,S,N,K] -> [B,T,H,V], in the dtype of values."""
    value, dtype = keys.value, keys.value.dtype
    if isinstance(lanes.value, L.ValueRotation):
        value = endpoint.turn_values(value, keys.seq, lanes.value)
    queries, keys, lanes = mapped_once(queries, keys, lanes, rotary_dim)
    blocks = B.blocks_of(keys, block)
    integral = blocks.at_last(keys.integral) if keys.integral.bias is not None else keys.integral
    coarse = pairs.Keys(keys.key, blocks.mean(value), B.sequence_of(keys, blocks), integral)

    def tile(tokens, first):
        part, temperature = tokens
        part = part.replace(seq=part.seq.replace(length=queries.seq.length),
                            slot=queries.slot + first)
        logits = B.scores(part, keys, lanes.transport, rotary_dim, blocks) * scale
        if temperature is not None:
            logits *= jnp.swapaxes(wide(temperature.factor), 1, 2)[..., None]
        visible = pairs.mask(part.seq, coarse.seq)
        bias = pairs.log_bias(part, coarse, lanes.bias, visible, scale)
        weights = over_visible(logits if bias is None else logits + bias, visible[:, None])
        out = pairs.mixed(weights, coarse.value)
        if isinstance(lanes.value, L.ValueTable):
            out += pairs.table_values(weights, part.seq, coarse.seq, lanes.value)
        return out

    tokens = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    out = pairs.over_queries(tile, (tokens, lanes.temperature), chunk or CHUNK)
    if isinstance(lanes.value, L.ValueRotation):
        out = endpoint.turn_values(out, queries.seq, lanes.value, sign=-1)
    return out.astype(dtype)
