"""Mamba: a selective state space, whose step size decides what each channel keeps."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, Positive
from lcx.errors import ConfigError
from lcx.layers import Dense, RmsNorm, ShortConv
from lcx.mixers import QUADRATIC, STEP, Support
from lcx.mixers.linear_family import MemoryState
from lcx.mixers.vector_family import VECTOR_SUPPORTS, VectorMixer
from lcx.ops import conv
from lcx.ops.scan.selective import CHUNK, selective_scan
from lcx.types import wide
from lcx.weights import free


@struct.dataclass
class Mamba1State:
    """The inputs that the short convolution still reads, and the state of the core."""

    tail: conv.ConvState
    core: Any


class Mamba1(VectorMixer):
    """Mamba (S6, arXiv:2312.00752): h = exp(step A) h + step B x per channel, y = C . h + D x.

    The linear algebra with a head per inner channel: key B and query C [N = state_dim] are shared
    by all, the value is one number, and A differs between the N, so that a rotation of B and C is
    part of the transition. x is `expand` x width wide, convolved over `window` tokens (with bias)
    and SiLU; step = softplus(W_2 W_1 x + b), W_1 of `step_rank` (width/16 if None); out = W_o (y *
    SiLU(W_z input)). norms: None, "plain" (an RMS norm without gain of the step's latent, B and C:
    Falcon-Mamba) or "gain" (with gain: Jamba), of eps `norm_eps`. A scheme's separable bias adds
    to step A, never to the step of the write.

    Starts: A = -1..-N, D = 1, W_2 uniform within step_rank^-1/2, b = softplus^-1 of a step
    log-uniform in [0.001, 0.1], other projections normal with variance 1/fan_in.
    """

    expand: Count = 2
    state_dim: Count = 16
    window: Count = 4
    step_rank: Count | None = None
    norms: str | None = None
    norm_eps: Positive = 1e-6

    paper: ClassVar[str] = "arXiv:2312.00752"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(expand=1, state_dim=4), dict(expand=1, state_dim=6, norms="gain", step_rank=3))
    supports = {**VECTOR_SUPPORTS, L.ValueRotation: Support(
        reason="the value of a channel is one number: a turn of two channels would mix states "
               "whose gates differ")}

    def site(self) -> L.Site:
        if self.norms not in (None, "plain", "gain"):
            raise ConfigError(f"norms={self.norms!r}: choose None, 'plain' or 'gain'")
        return L.Site(self.expand * self.width, 1, self.state_dim, self.state_dim, self.width,
                      self.train_length, value_dim=1)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Mamba1State | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        channels, dim = self.expand * self.width, self.state_dim
        rank = self.step_rank or math.ceil(self.width / 16)
        inner = Dense((channels,), ("channels",), name="value")(x)
        gate = Dense((channels,), ("channels",), name="gate")(x)
        inner, tail = ShortConv(self.window, "channels", use_bias=True, name="conv")(
            inner, seq, None if state is None else state.tail)
        inner = nn.silu(inner)
        small = lambda size, axis, name: self._normed(
            name, axis, Dense((size,), (axis,), ("channels",), name=name)(inner))
        low, key, query = (small(rank, None, "step_down"), small(dim, "state", "key"),
                           small(dim, "state", "query"))
        bound = rank**-0.5
        uniform = lambda k, shape, dtype=jnp.float32: jax.random.uniform(k, shape, dtype, -bound,
                                                                         bound)
        step = Dense((channels,), ("channels",), (None,), init=uniform, name="step_up")(low)
        param = lambda name, axes, init, *shape: wide(self.param(
            name, free(init, axes), (channels, *shape)))
        step = nn.softplus(wide(step) + param("step_bias", ("channels",), _step_bias))
        rate = -jnp.exp(param("log_rate", ("channels", "state"), _log_rate, dim))
        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        y, core = self._selective(query, key, step, inner, rate, seq, lanes, carry,
                                  None if state is None else state.core)
        y = y + param("skip", ("channels",), nn.initializers.ones_init()) * inner
        out = Dense((self.width,), ("width",), ("channels",), scale=self.output_scale, name="out")(
            y.astype(x.dtype) * nn.silu(gate))
        return out, None if state is None else Mamba1State(tail, core)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Mamba1State:
        channels = self.expand * self.width
        return Mamba1State(conv.init_state(batch, self.window, channels, dtype),
                           self.empty_state(batch, max_length, channels, 1, dtype))

    def _normed(self, name: str, axis: str | None, x: jax.Array) -> jax.Array:
        if self.norms is None:
            return x
        return RmsNorm(axis, self.norm_eps, self.norms == "gain", name=f"{name}_norm")(x)

    def _selective(self, query, key, step, inner, rate, seq, lanes, carry, state):
        """y [B,T,C] and the next state: the scan where no channel of B and C needs another."""
        batch, length, channels = inner.shape
        value = (step * inner).astype(inner.dtype)
        gates = all(isinstance(bias, L.Separable) for bias in lanes.bias)
        bare = lanes.transport is None and lanes.value is None
        if self.form in (QUADRATIC, STEP) or not (gates and bare):
            query = jnp.broadcast_to(query[:, :, None], (batch, length, channels, self.state_dim))
            y, state = self.mix(query, key[:, :, None], value[..., None], seq, lanes, carry, state,
                                log_decay=step[..., None] * rate)
            return wide(y)[..., 0], state
        last = L.nothing_seen(batch, lanes.axes)
        last = last if state is None else L.Last(state.ids, state.segment)
        _, starts, last = L.advance(seq, last)
        fade = sum(wide(bias.increment) for bias in lanes.bias) if lanes.bias else None
        if fade is not None:
            fade = jnp.broadcast_to(fade, value.shape)
        y, memory = selective_scan(
            query, key, value, step, rate, fade=fade, start=starts,
            state=None if state is None else state.memory[..., 0], chunk=self.chunk or CHUNK)
        log_decay, query = step[..., None] * rate, query[:, :, None].repeat(channels, 2)
        self.sow("intermediates", "inner", dict(  # for those who watch; else never computed
            query=query, key=key[:, :, None], value=value[..., None], log_decay=log_decay,
            normaliser=None))
        self.sow("intermediates", "outer", y[..., None])
        if state is not None:
            state = MemoryState(memory[..., None].astype(state.memory.dtype), None, last.segment,
                                carry, last.ids)
        return y, state


def _log_rate(key, shape, dtype=jnp.float32):
    """A = -1, -2, ... -N in every channel."""
    return jnp.log(jnp.broadcast_to(jnp.arange(1, shape[1] + 1, dtype=dtype), shape))


def _step_bias(key, shape, dtype=jnp.float32):
    """Inverse softplus of steps log-uniform in [0.001, 0.1]."""
    low, high = math.log(0.001), math.log(0.1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))
