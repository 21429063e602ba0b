"""Softmax attention in plain JAX with the whole [T,S] square: the naive twin of every backend."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import pairs
from lcx.ops.attention.weights import softmax
from lcx.types import wide


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool, window: int | None, sinks: int = 0, normaliser: Callable | None = None,
           pattern: Callable | None = None) -> jax.Array:
    """Softmax of temperature x scale x scores + bias over the allowed keys: [B,T,H,V], wide.

    normaliser: of `weights`, in place of the softmax; pattern: of `patterns` or `selected`.
    """
    score, allowed = logits(queries, keys, lanes, rotary_dim=rotary_dim, scale=scale, causal=causal,
                            window=window, sinks=sinks)
    allowed = allowed[:, None]
    if pattern is not None:
        allowed = allowed & pattern(queries, keys, lanes.transport, rotary_dim)
    weights = (normaliser or softmax)(score, allowed)
    out = pairs.mixed(weights, keys.value)
    if isinstance(lanes.value, L.ValueTable):
        out += pairs.table_values(weights, queries.seq, keys.seq, lanes.value)
    return out


def logits(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool, window: int | None, sinks: int = 0) -> tuple[jax.Array, jax.Array]:
    """What a normaliser acts on, [B,H,T,S] wide, and which pairs [B,T,S] it may see.

    sinks: the first tokens of a document, which stay visible beside a window; no bias reaches them.
    """
    allowed = pairs.mask(queries.seq, keys.seq, causal=causal, window=window, sinks=sinks)
    score = pairs.scores(queries, keys, lanes.transport, rotary_dim) * scale
    if lanes.temperature is not None:
        score *= jnp.swapaxes(wide(lanes.temperature.factor), 1, 2)[..., None]
    bias = pairs.log_bias(queries, keys, lanes.bias, allowed, scale)
    if bias is not None:
        if sinks:
            bias = jnp.where((keys.seq.index < sinks)[:, None, None], 0.0, bias)
        score = score + bias
    if lanes.logits is not None:
        bias = jnp.zeros_like(score) if bias is None else jnp.broadcast_to(bias, score.shape)
        score = lanes.logits.function(lanes.logits.params, score, bias, allowed,
                                      pairs.pair_distance(queries.seq, keys.seq))
    return score, allowed
