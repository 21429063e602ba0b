"""One softmax attention for every lane; the backend is chosen at trace time, and logged."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging

import jax

from lcx import lanes as L
from lcx.errors import ConfigError, did_you_mean
from lcx.ops import endpoint, pairs
from lcx.ops.attention import chunked, cudnn, reference

log = logging.getLogger("lcx.ops.attention")

BACKENDS = {"cudnn": cudnn.attend, "chunked": chunked.attend, "reference": reference.attend}
_WHOLE = {"cudnn"}  # take whole sequences, no cache
_PLATFORM = {"cudnn": "gpu"}  # what a backend needs, of those that do not run everywhere
# Where all logits of a layer are at most this many numbers, one square is quicker than chunks.
_SMALL = 2**23

_chosen = contextvars.ContextVar("attention_backend", default="auto")


@contextlib.contextmanager
def backend(name: str):
    """Attention inside this context uses the named backend, or "auto". Raises ConfigError."""
    if name not in (*BACKENDS, "auto"):
        raise ConfigError(f"unknown attention backend '{name}'"
                          + did_you_mean(name, (*BACKENDS, "auto")))
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> str:
    """The backend that is named here, or "auto": programs that differ in it are not the same."""
    return _chosen.get()


def available(name: str) -> bool:
    """Whether this machine can serve a backend (or "auto") at all."""
    return _PLATFORM.get(name, jax.default_backend()) == jax.default_backend()


def streams(name: str) -> bool:
    """Whether a backend (or "auto") takes the cache of a stream."""
    return name not in _WHOLE


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool = True, window: int | None = None, chunk: int | None = None,
           **other) -> jax.Array:
    """Softmax attention under a scheme's lanes: queries [B,T,H,K], keys [B,S,N,K] -> [B,T,H,V].

    Result in the dtype of the values; chunk: queries at once of the chunked backend. "auto" tries
    cuDNN, then a small square, then chunks; a backend that was asked for by name and cannot serve
    raises ConfigError with its reason. other: sinks, normaliser and pattern of `reference.attend`.
    """
    if isinstance(lanes.value, L.ValueRotation):  # turned here, so that every backend serves it
        keys = keys.replace(value=endpoint.turn_values(keys.value, keys.seq, lanes.value))
        out = attend(queries, keys, lanes.replace(value=None), rotary_dim=rotary_dim, scale=scale,
                     causal=causal, window=window, chunk=chunk, **other)
        return endpoint.turn_values(out, queries.seq, lanes.value, sign=-1)
    options = dict(rotary_dim=rotary_dim, scale=scale, causal=causal, window=window, **other)
    backends = {**BACKENDS, "chunked": functools.partial(chunked.attend, chunk=chunk)}
    name = _chosen.get()
    if name != "auto":
        try:
            out = backends[name](queries, keys, lanes, **options)
        except NotImplementedError as reason:
            raise ConfigError(f"attention backend '{name}' cannot serve this layer: {reason}; "
                              "use backend=auto") from reason
        return out.astype(keys.value.dtype)
    batch, length, heads, _ = queries.query.shape
    small = batch * heads * length * keys.key.shape[1] <= _SMALL
    refused = []
    for name in ("cudnn", "reference" if small else "chunked"):
        try:
            out = backends[name](queries, keys, lanes, **options)
        except NotImplementedError as reason:
            refused.append(f"{name}: {reason}")
            continue
        log.info("attention [%d,%d,%d] over %d keys: %s (%s)", batch, length, heads,
                 keys.key.shape[1], name, "; ".join(refused) or "first choice")
        return out.astype(keys.value.dtype)
    raise AssertionError("the chunked backend serves every lane")
