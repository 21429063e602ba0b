"""Linear attention with a kernel of the product q.k: every transport acts inside the kernel.

The kernel is a polynomial of the transported product, so a rotation of q and k before the feature
map ("pre") is exact: the weight is a function of <q_i, T_{i:j} k_j> and stays positive where the
polynomial is, in the denominator as in the numerator. A bias is a factor exp(bias) of the weight.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support
from lcx.mixers.linear_family import (
    EPS,
    FAR_SUPPORTS,
    SUPPORTS,
    KeysState,
    LinearMixer,
    MemoryState,
    RingState,
)
from lcx.ops import endpoint, pairs
from lcx.ops.attention import cache, pointwise
from lcx.ops.linear import ring
from lcx.types import wide, wide_dtype

_POWERS = "unimplemented: a reflection of every power of the keys"
KERNEL_SUPPORTS = {
    **SUPPORTS,
    **{lane: FAR_SUPPORTS[lane] for lane in (L.EventuallyConstant, L.Toeplitz)},
    L.Householder: Support((QUADRATIC,), {CHUNKED: _POWERS, STEP: _POWERS}),
    L.Temperature: Support((QUADRATIC, CHUNKED, STEP)),
}


class KernelMixer(LinearMixer):
    """Shared by mixers with weights sum_p c_p z_ij^p exp(bias_ij), p <= 2, over their sum.

    z is temperature x scale x transported product; coefficients c, set by the subclass.
    """

    family = "kernel"
    supports = KERNEL_SUPPORTS
    coefficients = (0.0, 1.0, 0.0)

    def weigh(self, query: jax.Array, key: jax.Array, value: jax.Array, seq: L.Sequence,
              lanes: L.Lanes, carry: Any, state: MemoryState | KeysState | None, *, scale: float):
        """Raw query [B,T,H,K], key [B,T,N,K], value [B,T,N,V] -> [B,T,H,V], next state."""
        self.sow("intermediates", "inner", {"core": {"kernel": dict(
            query=query, key=key, value=value, scale=scale, coefficients=self.coefficients,
            normaliser=EPS)}})
        over_pairs = self._way(lanes, state) == self._over_pairs
        run = self._kernel_over_pairs if over_pairs else self._kernel_over_features
        out, state = run(query, key, value, seq, lanes, carry, state, scale)
        out = out.astype(value.dtype)
        self.sow("intermediates", "outer", out)
        return out, state

    def _kernel_over_features(self, query, key, value, seq, lanes, carry, state, scale):
        """The polynomial as a product of features, which is linear attention; the sum of the
        weights is one more channel of the values."""
        transport, query, key = endpoint.in_basis(lanes.transport, query, key)
        diagonal = None
        if isinstance(transport, L.Diagonal):
            diagonal = L.Diagonal(power_increments(transport.increment, query.shape[-1],
                                                   self.coefficients))
            transport = transport.rotation
        if transport is not None:
            token = pairs.path_of(transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                transport, self.site().rotary_dim)
        query = query * scale  # after a map of the scheme, which need not be linear
        if lanes.temperature is not None:
            query = query * lanes.temperature.factor[..., None].astype(query.dtype)
        query, key = (powers(x, self.coefficients) for x in (query, key))
        value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], -1)
        lanes = lanes.replace(transport=diagonal, temperature=None)
        run = self._way(lanes, state)
        out, state = run(query, key, value, seq, lanes, carry, state, None, None)
        out = wide(out)
        return out[..., :-1] / (out[..., -1:] + EPS), state

    def _kernel_over_pairs(self, query, key, value, seq, lanes, carry, state, scale):
        queries, keys, state = remember(query, key, value, seq, lanes, carry, state)
        out = pointwise.attend(queries, keys, lanes, self._weigh, scale=scale,
                               rotary_dim=self.site().rotary_dim, chunk=self.chunk,
                               normalise=lambda out, total: out / (total + EPS))
        return out, state

    def _weigh(self, z, bias, queries, keys, rows):
        constant, linear, square = self.coefficients
        return (constant + linear * z + square * z * z) * jnp.exp(bias)

    def empty_kernel_state(self, batch: int, max_length: int, value_dim: int, dtype):
        """A memory of features where the scheme's lanes allow one, else a cache of raw keys."""
        site = self.site()
        lanes, carry = self.structure(batch)
        if self.over_pairs(lanes):
            return empty_cache(lanes, carry, site, batch, max_length, value_dim, dtype)
        dim = endpoint.mapped_dim(getattr(lanes.transport, "rotation", lanes.transport), site)
        size = powers(jnp.zeros((dim,)), self.coefficients).shape[-1]
        window = ring.reach(lanes)
        if window is None:
            memory = jnp.zeros((batch, site.num_heads, size, value_dim + 1), wide_dtype())
            return MemoryState(memory, None, L.nothing_seen(batch).segment, carry)
        diagonal = None
        if isinstance(lanes.transport, L.Diagonal):
            diagonal = jax.eval_shape(lambda gates: L.Diagonal(power_increments(
                gates, dim, self.coefficients)), lanes.transport.increment)
        like = cache.like(lanes.replace(transport=diagonal), batch, site.num_kv_heads, size,
                          value_dim + 1, dtype)
        return RingState(ring.init(like, site.num_heads, size, batch, window, False), carry)


def remember(query, key, value, seq, lanes, carry, state: KeysState | None):
    """Queries, all keys that they may read, and the next state of a cache."""
    path, extras = pairs.path_of(lanes.transport), pairs.extras_of(lanes)
    total = pairs.integrals(lanes, None if state is None else state.cache.total)
    keys, slot = pairs.Keys(key, value, seq.replace(length=None), total, path, extras), 0
    if state is not None:
        keys, slot, kept = cache.append(state.cache, keys)
        state = KeysState(kept, carry)
    return pairs.Queries(query, seq, total, path, extras, slot), keys, state


def empty_cache(lanes, carry, site: L.Site, batch: int, max_length: int, value_dim: int, dtype,
                value_heads: int | None = None, window: int | None = None) -> KeysState:
    """An empty cache of raw keys, with what the lanes keep beside them."""
    like = cache.like(lanes, batch, site.num_kv_heads, site.key_dim, value_dim, dtype, value_heads)
    return KeysState(cache.init(like, batch, max_length, window), carry)


def powers(x: jax.Array, coefficients: tuple[float, float, float]) -> jax.Array:
    """Features [...,F] of x [...,K] with powers(q).powers(k) = c_0 + c_1 q.k + c_2 (q.k)^2.

    The products x_a x_b of a < b stand once, times sqrt 2; a power with c = 0 has no channels.
    """
    constant, linear, square = coefficients
    parts = []
    if constant:
        parts.append(jnp.full_like(x[..., :1], constant**0.5))
    if linear:
        parts.append(x * linear**0.5)
    if square:
        first, second = np.triu_indices(x.shape[-1])
        weight = np.where(first == second, 1.0, 2**0.5) * square**0.5
        parts.append(x[..., first] * x[..., second] * jnp.asarray(weight, x.dtype))
    return jnp.concatenate(parts, -1)


def power_increments(increment: jax.Array, size: int, coefficients) -> jax.Array:
    """Log gates [B,T,N,F] of the features from those [B,T,N,<=K] of the channels: they add."""
    gate = wide(increment)
    gate = jnp.pad(gate, [(0, 0)] * 3 + [(0, size - gate.shape[-1])])
    first, second = np.triu_indices(size)
    parts = [jnp.zeros_like(gate[..., :1]), gate, gate[..., first] + gate[..., second]]
    return jnp.concatenate([p for p, c in zip(parts, coefficients) if c], -1)
