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
    score, allowed = logits(queries, keys, lanes, rotary_dim=rotary_dim, scale=scale, causal=causal,
                            window=window)
    score = jnp.where(allowed[:, None], score, jnp.finfo(score.dtype).min)
    weights = jax.nn.softmax(score, axis=-1)
    out = pairs.mixed(weights, keys.value)
    if isinstance(lanes.value, L.ValueTable):
        out += pairs.table_values(weights, queries.seq, keys.seq, lanes.value)
    return out


def logits(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool, window: int | None) -> tuple[jax.Array, jax.Array]:
    """What a normaliser acts on, [B,H,T,S] wide, and which pairs [B,T,S] it may see."""
    allowed = pairs.mask(queries.seq, keys.seq, causal=causal, window=window)
    score = pairs.scores(queries, keys, lanes.transport, rotary_dim) * scale
    if lanes.temperature is not None:
        score *= jnp.swapaxes(wide(lanes.temperature.factor), 1, 2)[..., None]
    bias = pairs.log_bias(queries, keys, lanes.bias, allowed, scale)
    if bias is not None:
        score = score + bias
    if lanes.logits is not None:
        bias = jnp.zeros_like(score) if bias is None else jnp.broadcast_to(bias, score.shape)
        score = lanes.logits.function(lanes.logits.params, score, bias, allowed)
    return score, allowed
