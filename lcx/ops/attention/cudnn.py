"""Softmax attention through cuDNN's fused kernel: lanes that are maps of queries and keys only.

Where the kernel was found wrong it is not used (jax 0.11.2, cuDNN 9.19, H100). The gradient of a
float32 bias beside bfloat16 queries, or of a bias that `vmap` shares, is wrong: no bias is passed,
a layer with one runs in chunks. A row with no allowed key has garbage gradients: queries must meet
their own tokens in order of arrival, so that each sees itself at least.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.types import wide


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool, window: int | None, sinks: int = 0, normaliser: Callable | None = None,
           pattern: Callable | None = None) -> jax.Array:
    """As `reference.attend` in bfloat16 or float16. NotImplementedError says what it cannot do."""
    query, key, value = queries.query, keys.key, keys.value
    if jax.default_backend() != "gpu":
        raise NotImplementedError("cuDNN needs an NVIDIA GPU")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"cuDNN needs bfloat16 or float16, not {query.dtype}")
    if query.shape[1] != key.shape[1]:
        raise NotImplementedError("cuDNN takes whole sequences, not a cache")
    if queries.seq.order is not keys.seq.order:  # slots may be empty, and a row without any key
        raise NotImplementedError("cuDNN masks by slot: the keys must be the queries' own tokens")
    if window is not None and window < 1:
        raise NotImplementedError("cuDNN needs a key in every row, a window of 1 or more")
    if lanes.bias:
        raise NotImplementedError("cuDNN would hold a bias as a [T,S] array")
    if queries.seq.segment is not None:
        raise NotImplementedError("cuDNN would hold a packing mask as a [T,S] array")
    if lanes.value is not None or lanes.logits is not None:
        raise NotImplementedError("cuDNN does not show its weights and logits")
    if sinks or normaliser is not None or pattern is not None:
        raise NotImplementedError("cuDNN has the plain softmax over a past or a window")
    if window is not None and not causal:
        raise NotImplementedError("cuDNN windows are causal here")
    match lanes.transport:
        case None:
            pass
        case L.Rotation() | L.ContentRotation() | L.FeatureMap():
            query, key = endpoint.mapped(queries, keys, lanes.transport, rotary_dim)
        case other:
            raise NotImplementedError(f"cuDNN has no {type(other).__name__} transport")
    if key.shape[2] != value.shape[2]:
        raise NotImplementedError("cuDNN needs as many value heads as key heads")
    if query.shape[-1] % 8 or query.shape[-1] > 256 or value.shape[-1] != query.shape[-1]:
        raise NotImplementedError("cuDNN needs one head_dim, a multiple of 8 up to 256")
    if lanes.temperature is not None:
        query = (wide(query) * wide(lanes.temperature.factor)[..., None]).astype(query.dtype)
    return jax.nn.dot_product_attention(
        query, key, value, scale=scale, is_causal=causal, implementation="cudnn",
        local_window_size=None if window is None else (window - 1, 0))
