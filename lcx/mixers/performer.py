"""Performer: linear attention with positive random features of the softmax's exponential."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, NonNegative, Seed
from lcx.errors import ConfigError, Unimplemented
from lcx.layers import Dense
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support
from lcx.mixers.kernel_family import empty_cache
from lcx.mixers.linear_family import EPS, LinearMixer
from lcx.ops import endpoint, pairs
from lcx.ops.linear import ring
from lcx.types import wide, wide_dtype


@struct.dataclass
class PerformerState:
    """The core's state; peak [B,N]: the largest exponent of the document's keys so far; segment
    [B] of the last token."""

    core: Any
    peak: jax.Array
    segment: jax.Array


class Performer(LinearMixer):
    """FAVOR+ (arXiv:2009.14794): weights phi(q).phi(k) over their sum, close to exp(q.k K^-1/2).

    phi(x) = m^-1/2 (exp(W x' - |x'|^2/2 - c) + floor), x' = K^-1/4 x; W has `num_features` m rows
    (K ln K, made even, if None) in orthogonal blocks with the lengths of Gaussian vectors, drawn
    from `seed` for all heads and never trained or redrawn. c keeps exp within range: of a query its
    largest exponent; of keys the largest of their document *so far*, held by the memory as a decay,
    where the published code takes the whole sequence's and so lets the future leak. floor keeps
    features away from 0, 1e-4 as published; for very many features it is a bias, and wants to be 0.

    inside: a rotation acts on q and k before phi, as in a softmax, which is relative only in
    expectation; otherwise every transport acts on the features, in the numerator alone (RoFormer,
    arXiv:2104.09864), and is exact. A temperature is that of the exponential. head_dim:
    width/num_heads if None. Projections start normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    num_features: Count | None = None
    seed: Seed = 0
    inside: bool = False
    floor: NonNegative = 1e-4

    family = "kernel"
    supports = {**LinearMixer.supports, L.Temperature: Support((QUADRATIC, CHUNKED, STEP))}
    paper: ClassVar[str] = "arXiv:2009.14794"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, head_dim=8, num_features=12))

    def site(self) -> L.Site:
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // self.num_heads
        compared = dim if self.inside else self._size(dim)
        return L.Site(self.num_heads, self.num_heads, compared, compared, self.width,
                      self.train_length, value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: PerformerState | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim = self.num_heads, self.site().value_dim
        dense = lambda name: Dense((heads, dim), ("heads", "head_dim"), name=name)(x)
        query, key, value = dense("query"), dense("key"), dense("value")
        core = None if state is None else state.core
        lanes, carry = self.see(x, seq, None if core is None else core.carry, shared)
        if lanes.temperature is not None:
            query = query * lanes.temperature.factor[..., None].astype(query.dtype)
        if self.inside and lanes.transport is not None:
            if not isinstance(lanes.transport, endpoint.TRANSPORTS):
                raise Unimplemented(type(lanes.transport).__name__, "performer(inside=True)",
                                    "only maps of single queries and keys act before the features")
            token = pairs.path_of(lanes.transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                lanes.transport, dim)
            lanes = lanes.replace(transport=None)
        weights = orthogonal_features(self._size(dim), query.shape[-1], self.seed)
        weights = jax.lax.optimization_barrier(jnp.asarray(weights, wide_dtype()))
        query, key = _exponents(query, weights), _exponents(key, weights)
        top = jax.lax.stop_gradient(jnp.max(query, -1, keepdims=True))
        peak, log_decay, state = self._peaks(key, seq, state)
        feature = lambda z: ((jnp.exp(z) + self.floor) * len(weights) ** -0.5).astype(x.dtype)
        query, key = feature(query - top), feature(key - peak[..., None])
        lanes = lanes.replace(temperature=None)
        self.sow("intermediates", "inner", {"core": {"linear": dict(
            query=query, key=key, value=value, log_decay=log_decay, normaliser=EPS, lanes=lanes)}})
        run = self._way(lanes, core)
        out, core = run(query, key, value, seq, lanes, carry, core, log_decay, EPS)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, None if state is None else state.replace(core=core)

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """As in the family; what acts inside the features leaves no ring of keys."""
        return super().over_pairs(lanes) or self.inside and ring.reach(lanes) is not None

    def _peaks(self, exponent, seq, state):
        """Running maximum [B,T,H] of the keys' exponents, and how much each step lowers the past.

        exp(z_j - peak_j) exp(peak_j - peak_i) = exp(z_j - peak_i): the change of the stabiliser is
        a decay of the memory, and cancels between the weights and their sum.
        """
        exponent = jax.lax.stop_gradient(jnp.max(exponent, -1))
        last = L.nothing_seen(exponent.shape[0])
        before = jnp.full(exponent[:, 0].shape, -jnp.inf)
        if state is not None:
            last, before = last.replace(segment=state.segment), state.peak
        _, starts, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        starts = jnp.broadcast_to(starts, exponent.shape[:2])[..., None]
        first = jnp.where(starts[:, 0], exponent[:, 0], jnp.maximum(before, exponent[:, 0]))
        exponent = exponent.at[:, 0].set(first)

        def larger(left, right):
            (a, _), (b, begins) = left, right
            return jnp.where(begins, b, jnp.maximum(a, b)), left[1] | begins

        peak, _ = jax.lax.associative_scan(larger, (exponent, starts), axis=1)
        previous = jnp.concatenate([before[:, None], peak[:, :-1]], 1)
        log_decay = jnp.where(starts, 0.0, jnp.where(starts, 0.0, previous) - peak)
        if state is not None:
            state = state.replace(peak=peak[:, -1], segment=last.segment)
        return peak, log_decay, state

    def _size(self, dim: int) -> int:
        found = self.num_features or int(dim * math.log(dim))
        return max(2, found // 2 * 2)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> PerformerState:
        site = self.site()
        if self.inside:  # no transport is left to the core, whose keys are features
            site = dataclasses.replace(site, key_dim=self._size(site.value_dim))
        lanes, carry = self.structure(batch)
        heads = (batch, site.num_heads)
        if self.over_pairs(lanes):
            gate = L.Separable(jax.ShapeDtypeStruct((1, 1, site.num_heads), wide_dtype()))
            lanes = lanes.replace(bias=(*lanes.bias, gate),
                                  transport=None if self.inside else lanes.transport)
            core = empty_cache(lanes, carry, site, batch, max_length, site.value_dim, dtype)
        else:
            core = self.empty_state(batch, max_length, site.num_heads, site.value_dim, dtype,
                                    log_decay=True, normaliser="sum")
            if self.inside:
                empty = lambda size: jnp.zeros((*heads, site.key_dim, size), wide_dtype())
                core = core.replace(memory=empty(site.value_dim), total=empty(1))
        return PerformerState(core, jnp.full(heads, -jnp.inf, wide_dtype()),
                              L.nothing_seen(batch).segment)


def _exponents(x: jax.Array, weights: jax.Array) -> jax.Array:
    """W x' - |x'|^2 / 2 [B,T,H,m] of x [B,T,H,K], wide."""
    x = wide(x) * x.shape[-1] ** -0.25
    return jnp.einsum("bthk,mk->bthm", x, weights) - jnp.sum(x * x, -1, keepdims=True) / 2


@functools.cache
def orthogonal_features(size: int, dim: int, seed: int) -> np.ndarray:
    """[size, dim] float64: blocks of orthogonal rows in uniform directions, each as long as a
    Gaussian vector."""
    random = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-size // dim)):
        basis, upper = np.linalg.qr(random.normal(size=(dim, dim)))
        # without these signs the diagonal is negative: a kernel 14 % off at K = 4, 5 % at K = 16
        blocks.append((basis * np.sign(np.diag(upper))).T)
    lengths = np.linalg.norm(random.normal(size=(size, dim)), axis=1)
    return np.concatenate(blocks)[:size] * lengths[:, None]
