"""Softmax attention in plain JAX with the whole [T,S] square: the naive twin of every backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import pairs
from lcx.types import wide


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool, window: int | None) -> jax.Array:
    """Softmax of temperature x scale x scores + bias over the allowed keys: [B,T,H,V], wide."""
    allowed = pairs.mask(queries.seq, keys.seq, causal=causal, window=window)
    logits = pairs.scores(queries, keys, lanes.transport, rotary_dim) * scale
    if lanes.temperature is not None:
        logits *= jnp.swapaxes(wide(lanes.temperature.factor), 1, 2)[..., None]
    bias = pairs.log_bias(queries, keys, lanes.bias, allowed, scale)
    if bias is not None:
        logits = logits + bias
    if lanes.logits is not None:
        bias = jnp.zeros_like(logits) if bias is None else jnp.broadcast_to(bias, logits.shape)
        logits = lanes.logits.function(lanes.logits.params, logits, bias, allowed)
    logits = jnp.where(allowed[:, None], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1)
    out = pairs.mixed(weights, keys.value)
    if isinstance(lanes.value, L.ValueTable):
        out += pairs.table_values(weights, queries.seq, keys.seq, lanes.value)
    return out
