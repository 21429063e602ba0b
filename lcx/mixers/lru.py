"""LRU, the linear recurrent unit: complex diagonal memory between two full matrices."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count, Fraction, Positive
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.mixers.diagonal_family import DiagonalMixer
from lcx.ops import pairs
from lcx.ops.scan.of_lanes import turning
from lcx.types import wide
from lcx.weights import free


class Lru(DiagonalMixer):
    """Linear recurrent unit (arXiv:2303.06349): h_t = lambda h_{t-1} + gamma (B x_t),
    y_t = Re(C h_t) + skip x_t, with lambda = exp(-e^nu + i e^theta) for each of `state_dim` complex
    channels (width if None), B and C full complex matrices, gamma kept as a logarithm.

    |lambda|^2 starts uniform in radius^2, its angle in (0, max_phase); gamma at sqrt(1 -
    |lambda|^2), from where it is learned on its own; B normal with variance 1 / (2 width) in each
    part, C with 1 / state_dim, skip standard normal. The real and imaginary part of a channel are
    the pair that a scheme's rotation turns, so that its angle adds to that of lambda.
    """

    num_heads: Count = 4
    state_dim: Count | None = None
    radius: tuple[Fraction, Fraction] = (0.0, 1.0)
    max_phase: Positive = 6.28

    paper: ClassVar[str] = "arXiv:2303.06349"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, state_dim=12, radius=(0.5, 0.9)))
    turns = True

    def site(self) -> L.Site:
        channels = self.state_dim or self.width
        if channels % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide state_dim={channels}")
        dim = 2 * channels // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    def structure(self, batch: int = 1) -> tuple[L.Lanes, Any]:
        lanes, carry = super().structure(batch)
        count = self.site().value_dim // 2
        return jax.eval_shape(lambda lanes: _of_channels(lanes, count), lanes), carry

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, count = self.num_heads, self.site().value_dim // 2
        number = lambda name, init, *axes, shape=(heads, count): wide(self.param(
            name, free(init, axes or ("heads", "head_dim")), shape))
        rate = number("nu", self._nu)
        turn = number("theta", self._theta)
        gain = number("gamma", lambda *_: 0.5 * jnp.log(-jnp.expm1(-2.0 * jnp.exp(rate))))
        value = Dense((heads, 2, count), ("heads", None, "head_dim"), scale=math.sqrt(0.5),
                      name="in")(x)
        value = wide(value) * jnp.exp(gain)[:, None]

        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        step, starts, last = self.advance(seq, lanes, state, x.shape[0])
        turned, decay, own = self._turned(lanes, jnp.exp(turn), -jnp.exp(rate), step, starts)
        value = value.reshape(*x.shape[:2], heads, -1)
        out, memory = self.recur(jnp.broadcast_to(decay, value.shape), value, seq, turned, step,
                                 starts, None if state is None else state.memory, own)
        out = Dense((self.width,), ("width",), ("heads", None, "head_dim"),
                    scale=math.sqrt(2.0) * self.output_scale, name="out")(
                        out.astype(x.dtype).reshape(*x.shape[:2], heads, 2, count))
        skip = number("skip", nn.initializers.normal(1.0), "width", shape=(self.width,))
        if state is not None:
            state = state.replace(memory=memory, last=last, carry=carry)
        return out + (skip * x).astype(x.dtype), state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, max_length)

    def _turned(self, lanes: L.Lanes, turn: jax.Array, decay: jax.Array, step, starts):
        """Lanes in which lambda turns too, by turn [H,N], log gates [1 or B,T,H,2N] with what fades
        inside, and those turns where the lanes cannot hold them. Channels are all real parts, then
        all imaginary ones."""
        transport, count = lanes.transport, turn.shape[-1]
        if isinstance(transport, L.Piecewise):
            decay = jnp.broadcast_to(jnp.concatenate([decay, decay], -1),
                                     (*starts.shape, self.num_heads, 2 * count))
            return _of_channels(lanes, count), decay, jnp.broadcast_to(
                turn, (1, starts.shape[1], *turn.shape))
        rotation, angle, interleaved = turning(lanes), jnp.zeros((1, 1, 1, 0)), False
        if rotation is not None:
            interleaved = rotation.interleaved
            content = isinstance(rotation, L.ContentRotation)
            angle = wide(rotation.step) if content else L.phase(rotation, step)[:, :, None]
        turned = angle.shape[-1]
        every = lambda a, size: jnp.pad(pairs.repeat_heads(a, self.num_heads),
                                        [(0, 0)] * 3 + [(0, size - a.shape[-1])])
        angle = every(angle, count) - jnp.where(starts[..., None, None], 0.0, turn)
        decay = jnp.concatenate([decay, decay], -1)
        decay = jnp.broadcast_to(decay, (*starts.shape, *decay.shape))
        if isinstance(transport, L.Diagonal):
            fade = every(wide(transport.increment), 2 * count)
            first, rest = fade[..., :2 * turned], fade[..., 2 * turned:]
            first = first.reshape(*first.shape[:-1], *((turned, 2) if interleaved else (2, turned)))
            first = jnp.swapaxes(first, -1, -2) if interleaved else first
            halves = [first, rest.reshape(*rest.shape[:-1], 2, count - turned)]
            decay = decay + jnp.concatenate(halves, -1).reshape(fade.shape)
        return L.Lanes(L.ContentRotation(None, angle), lanes.bias), decay, None

    def _nu(self, key, shape, dtype=jnp.float32):
        least, most = (radius**2 for radius in self.radius)
        square = jax.random.uniform(key, shape, dtype, least, most)
        return jnp.log(-0.5 * jnp.log(square))

    def _theta(self, key, shape, dtype=jnp.float32):
        return jnp.log(self.max_phase * jax.random.uniform(key, shape, dtype))


def _of_channels(lanes: L.Lanes, count: int) -> L.Lanes:
    """Lanes in which pair m of a piecewise rotation is channel m of `count`: (m, m + count)."""
    if not isinstance(lanes.transport, L.Piecewise):
        return lanes
    rotation = lanes.transport.rotation
    spare = count - rotation.frequency.shape[-1]
    axis = None if rotation.axis is None else (*rotation.axis, *[0] * spare)
    rotation = rotation.replace(frequency=jnp.pad(rotation.frequency, [(0, 0), (0, spare)]),
                                axis=axis, interleaved=False)
    return lanes.replace(transport=lanes.transport.replace(rotation=rotation))
