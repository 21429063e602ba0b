"""RWKV-7: a generalised delta rule whose erase reads along one vector and acts along another."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx.domains import Count, Whole, in_depth
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, token_before
from lcx.mixers.delta_family import DeltaMixer
from lcx.ops import conv
from lcx.sharding import shard
from lcx.types import wide
from lcx.weights import free


@struct.dataclass
class FirstValue:
    """Values [B,T,D] of the first layer of the kind, and whether there has been one, a bool."""

    value: jax.Array
    known: jax.Array


class Rwkv7(DeltaMixer):
    """The time mixing of RWKV-7 (arXiv:2503.14456): [B,T,D] -> [B,T,D].

    S_t = (diag(w) - (a * kappa) kappa^T) S_{t-1} + k v^T, read by r; K = V = width/num_heads.
    Each of r, w, k, v, a, g sees x blended with the token before by its own mu: x + mu (x' - x).
    log w = -exp(-1/2) sigmoid(w_0 + W_2 tanh(W_1 x)), a = sigmoid(a_0 + A_2 A_1 x), g = G_2
    sigmoid(G_1 x); kappa is the unit vector of k * k_k by head, and k then becomes
    k (1 + (a - 1) k_a). The output is W_o (g * (norm(o) + (r . (r_k * k)) v)), with a group norm
    per head (eps 64e-5, gain and bias). A scheme's transports and biases act first: "S_{t-1}" is
    the memory as the scheme hands it on. In a model of several layers of this kind all but the
    first mix v + s (v_first - v) in place of v, v_first the first layer's own, with s =
    sigmoid(s_0 + V_2 V_1 x) of the blended x of v; the first layer has the weights of s too, and no
    use for them.

    ranks: of W, A, G and V: 2.5, 2.5, 5 and 1.7 sqrt(width) in multiples of 32 if None;
    value_residual: whether this layer gives and takes v_first; layer and num_layers: which layer it
    is, from 0, read by the published initial values only.
    W_o, W_1, A_1, G_1 and V_1 start at zero. w_0 is "decay_bias", a_0 "rate_bias", s_0
    "share_bias", mu "blend_scale", k_k "removal_scale", k_a "key_scale", r_k "bonus_scale".
    """

    num_heads: Count = 4
    ranks: tuple[Count, Count, Count, Count] | None = None
    value_residual: bool = True
    layer: Whole = 0
    num_layers: Count = 1

    paper: ClassVar[str] = "arXiv:2503.14456"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, ranks=(4, 6, 5, 3), layer=2, num_layers=3))

    def site(self) -> Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        dim = self.width // self.num_heads
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=dim)

    def empty_relay(self, x: jax.Array) -> FirstValue | None:
        return FirstValue(jnp.zeros_like(x), jnp.zeros((), bool)) if self.value_residual else None

    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        return self.relayed(x, seq, state, shared)[:2]

    @nn.compact
    def relayed(self, x: jax.Array, seq: Sequence, state: Any = None, shared: Lanes | None = None,
                relay: FirstValue | None = None) -> tuple[jax.Array, Any, FirstValue | None]:
        start = Start(self.width, self.width // self.num_heads, self.layer, self.num_layers)
        before, tail = token_before(x, seq, None if state is None else state.conv)
        blend = wide(self.param("blend_scale", free(
            start.blend, (None, "width")), (6, self.width)))
        moved = [(x + (before - x) * mu).astype(x.dtype) for mu in blend]
        r, w, k, v, a, g = moved
        query, key = self._heads("query", start.uniform(0.5), r), self._heads(
            "key", start.uniform(0.05), k)
        value = self._heads("value", start.uniform(0.5), v)
        ranks = self.ranks or tuple(
            max(32, 32 * round(n * math.sqrt(self.width) / 32)) for n in (2.5, 2.5, 5.0, 1.7))
        if relay is not None and self.value_residual:
            share = self._low("share", ranks[3], start, v) + self._vector("share_bias", start.share)
            first = jnp.where(relay.known, relay.value, value.reshape(x.shape))
            value = value + (nn.sigmoid(share) * (first.reshape(value.shape) - value)
                             ).astype(value.dtype)  # the first layer's is its own, exactly
            relay = FirstValue(shard(first, "batch length channels"), jnp.ones((), bool))
        decay = self._low("decay", ranks[0], start, w, jnp.tanh)
        decay = nn.sigmoid(decay + self._vector("decay_bias", start.decay))
        log_decay = -math.exp(-0.5) * decay
        rate = self._low("rate", ranks[1], start, a)
        rate = nn.sigmoid(rate + self._vector("rate_bias", start.rate))
        gate = self._low("gate", ranks[2], start, g, nn.sigmoid)
        kappa = wide(key) * self._vector("removal_scale", start.removal)
        kappa = kappa * jax.lax.rsqrt(jnp.maximum(
            jnp.sum(kappa * kappa, -1, keepdims=True), 1e-24))
        key = wide(key) * (1 + (rate - 1) * self._vector("key_scale", start.constant(1.02)))
        bonus = self._vector("bonus_scale", start.constant(-0.04))

        out, state = self.mix(query, key, value, x, seq, state, shared, tail,
                              beta=jnp.ones(x.shape[:2] + (self.num_heads,), log_decay.dtype),
                              log_decay=log_decay, erase=kappa, write=rate * kappa, undecayed=True)
        out = wide(out)
        out = out - jnp.mean(out, -1, keepdims=True)
        out = out * jax.lax.rsqrt(jnp.mean(out * out, -1, keepdims=True) + 64e-5)
        depth = ((1 + self.layer) / self.num_layers) ** 0.7
        out = out * self._vector("norm_scale", start.constant(depth))
        out = out + self._vector("norm_bias", start.constant(0.0))
        out = out + jnp.sum(wide(query) * bonus * key, -1, keepdims=True) * value
        out = Dense((self.width,), ("width",), ("heads", "head_dim"),
                    init=nn.initializers.zeros_init(), name="out")((out * gate).astype(x.dtype))
        return out, state, relay

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, self.site().value_dim,
                                conv.init_state(batch, 2, self.width, dtype))

    def _heads(self, name: str, init, x: jax.Array) -> jax.Array:
        shape = (self.num_heads, self.site().key_dim)
        return Dense(shape, ("heads", "head_dim"), init=init, name=name)(x)

    def _low(self, name: str, rank: int, start: Start, x: jax.Array, act=lambda x: x) -> jax.Array:
        """A map of low rank [B,T,H,K], wide; `act` between its two factors."""
        x = act(Dense((rank,), ("rank",), init=nn.initializers.zeros_init(), name=f"{name}_in")(x))
        shape = (self.num_heads, self.site().key_dim)
        return wide(Dense(shape, ("heads", "head_dim"), ("rank",), init=start.orthogonal,
                          name=name)(x))

    def _vector(self, name: str, init) -> jax.Array:
        """A parameter of each channel [H,K], wide."""
        shape = (self.num_heads, self.site().key_dim)
        return wide(self.param(name, free(init, ("heads", "head_dim")), shape))


class Start:
    """The published initial values, which depend on the channel n of D and on the layer."""

    def __init__(self, width: int, head_dim: int, layer: int, num_layers: int):
        n = np.arange(width)
        self.depth, self.left = layer / max(1, num_layers - 1), 1 - in_depth(layer, num_layers)
        self.ramp, self.place = n / max(1, width - 1), n / width
        middle = max(1, head_dim - 1) / 2
        self.zigzag = (n % head_dim - middle) / middle
        self.zigzag = self.zigzag * np.abs(self.zigzag)

    def blend(self, key, shape, dtype=jnp.float32):
        powers = np.array([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None]  # of r, w, k, v, a, g
        return jnp.asarray(1 - self.place ** (powers * self.left), dtype)

    def decay(self, key, shape, dtype=jnp.float32):
        slope = -6 + 6 * self.ramp ** (1 + self.depth**0.3)
        return jnp.asarray(slope + 0.5 + 2.5 * self.zigzag, dtype).reshape(shape)

    def rate(self, key, shape, dtype=jnp.float32):
        return jnp.asarray(-0.19 + 0.3 * self.zigzag + 0.4 * (self.ramp - 0.5), dtype).reshape(
            shape)

    def removal(self, key, shape, dtype=jnp.float32):
        return jnp.asarray(0.71 - 0.1 * (self.ramp - 0.5), dtype).reshape(shape)

    def share(self, key, shape, dtype=jnp.float32):
        return jnp.asarray(0.73 - 0.4 * (self.ramp - 0.5), dtype).reshape(shape)

    @staticmethod
    def constant(value: float):
        return nn.initializers.constant(value)

    def uniform(self, bound: float):
        bound = bound / math.sqrt(len(self.place))
        return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
            key, shape, dtype, -bound, bound)

    @staticmethod
    def orthogonal(key, shape, dtype=jnp.float32):
        """0.1 x orthogonal [rank, D], larger where the rank is more than D."""
        rank, width = shape[0], math.prod(shape[1:])
        scale = 0.1 * math.sqrt(max(1.0, rank / width))
        return nn.initializers.orthogonal(scale)(key, (rank, width), dtype).reshape(shape)
