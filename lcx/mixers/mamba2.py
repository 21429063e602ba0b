"""Mamba-2: state space duality, linear attention with a gate per token and head."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm, ShortConv
from lcx.mixers.linear_family import LinearMixer
from lcx.ops import conv, pairs
from lcx.types import wide
from lcx.weights import free


@struct.dataclass
class Mamba2State:
    """Tails of the convolutions over value, key and query, and the state of the linear core."""

    tails: tuple[conv.ConvState, ...]
    core: Any


class Mamba2(LinearMixer):
    """Mamba-2 (SSD, arXiv:2405.21060): S = exp(-rate step) S + key (step value)^T, read by query.

    In the paper's letters: query C and key B of `state_dim` N channels, shared by the heads of
    each of `num_groups` G; value x with H heads of head_dim P (2 width/num_heads if None; published
    models take head_dim 64 and state_dim 128); step = softplus(W x + bias) > 0 per token and head;
    gate z. value, key and query pass a causal depthwise convolution of `window` tokens and SiLU.
    y = core + skip * value (D of the paper), out = W_o norm(y * SiLU(z)): gate before the norm,
    which runs over each group's share of the channels. A scheme's separable bias adds to
    -rate * step, never to the step of the write.

    Starts: rate uniform in [1, 16]; bias = softplus^-1 of a step log-uniform in [0.001, 0.1];
    skip 1; projections normal with variance 1/fan_in; convolutions as `ShortConv`, with bias.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    state_dim: Count = 64
    num_groups: Count = 1
    window: Count = 4

    paper: ClassVar[str] = "arXiv:2405.21060"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=8), dict(state_dim=12, head_dim=6, num_groups=2, window=3))

    def site(self) -> Site:
        if self.num_heads % self.num_groups:
            raise ConfigError(f"num_groups={self.num_groups} must divide "
                              f"num_heads={self.num_heads}")
        return Site(self.num_heads, self.num_groups, self.state_dim, self.state_dim, self.width,
                    self.train_length, value_dim=self._head_dim())

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Mamba2State | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, groups, dim = self.num_heads, self.num_groups, self._head_dim()
        gate = Dense((heads, dim), ("heads", "head_dim"), name="gate")(x)
        step = Dense((heads,), ("heads",), name="step")(x)
        # One convolution over the concatenation would be the same; apart, each keeps its sharding.
        tails = (None,) * 3 if state is None else state.tails
        value, first = self._convolved(x, "value", heads, dim, seq, tails[0])
        key, second = self._convolved(x, "key", groups, self.state_dim, seq, tails[1])
        query, third = self._convolved(x, "query", groups, self.state_dim, seq, tails[2])
        per_head = lambda name, init: wide(self.param(
            name, free(init, ("heads",)), (heads,)))
        step = nn.softplus(wide(step) + per_head("step_bias", _step_bias))
        log_decay = -jnp.exp(per_head("log_rate", _log_rate)) * step
        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        y, core = self.recall(x, pairs.repeat_heads(query, heads), key,
                              (step[..., None] * value).astype(x.dtype), seq, lanes, carry,
                              None if state is None else state.core, log_decay=log_decay)
        skip = per_head("skip", nn.initializers.ones_init())
        y = (y + skip[:, None] * value).astype(x.dtype) * nn.silu(gate)
        grouped = y.reshape(*y.shape[:2], groups, -1)
        y = RmsNorm(eps=1e-5, affine=False, name="norm")(grouped).reshape(y.shape)
        gain = self.param("norm_scale", free(
            nn.initializers.ones_init(), ("heads", "head_dim")), (heads, dim))
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(y * gain.astype(y.dtype))
        return out, None if state is None else Mamba2State((first, second, third), core)

    def recall(self, x, query, key, value, seq, lanes, carry, state, *, log_decay):
        """The core, as `mix`: x [B,T,D] is the layer's input, for a core that reads more of it."""
        return self.mix(query, key, value, seq, lanes, carry, state, log_decay=log_decay)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Mamba2State:
        heads, dim = self.num_heads, self._head_dim()
        sizes = (heads * dim, self.num_groups * self.state_dim, self.num_groups * self.state_dim)
        tails = tuple(conv.init_state(batch, self.window, size, dtype) for size in sizes)
        return Mamba2State(tails, self.empty_state(batch, max_length, heads, dim, dtype,
                                                   log_decay=True))

    def _head_dim(self) -> int:
        if self.head_dim is None and 2 * self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide 2 x width={2 * self.width}, "
                              "or set head_dim")
        return self.head_dim or 2 * self.width // self.num_heads

    def _convolved(self, x, name: str, heads: int, size: int, seq: Sequence, tail):
        """SiLU(conv(W x)) as [B,T,heads,size], and the tail of the convolution."""
        axes = ("heads", "head_dim") if name == "value" else ("kv_heads", "state")
        y = Dense((heads, size), axes, name=name)(x).reshape(*x.shape[:2], -1)
        y, tail = ShortConv(self.window, "channels" if name == "value" else "state", use_bias=True,
                            name=f"{name}_conv")(y, seq, tail)
        return nn.silu(y).reshape(*x.shape[:2], heads, size), tail


def _log_rate(key, shape, dtype=jnp.float32):
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def _step_bias(key, shape, dtype=jnp.float32):
    """Inverse softplus of steps log-uniform in [0.001, 0.1]."""
    low, high = math.log(0.001), math.log(0.1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))
