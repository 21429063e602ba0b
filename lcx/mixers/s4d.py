"""S4D: a diagonal state space per channel, as one long convolution or step by step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, Positive, whole
from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Lanes, Sequence
from lcx.layers import Dense
from lcx.mixers.lti_family import LtiMixer, LtiState
from lcx.ops import hippo
from lcx.ops.conv import Modes
from lcx.types import wide
from lcx.weights import free


class S4d(LtiMixer):
    """S4D (arXiv:2206.11893): y = K * x + skip x, out = GLU(W gelu(y) + b), per channel

    K(l) = 2 Re sum_n C_n (exp(step A_n) - 1) / A_n exp(l step A_n), the zero-order hold of
    h' = A h + x, y = 2 Re C h, with `state_dim` / 2 complex A_n (the other half are conjugates).

    start: where A begins. "lin": -1/2 + i pi n; "inv": -1/2 + i N/pi (N/(2n+1) - 1); "real":
    -(n+1); "legs": the eigenvalues of the normal part of HiPPO-LegS, with its input vector B, the
    imaginary part within +-2 (B multiplies C, where it stays; the other starts have B = 1).
    step is log-uniform in `steps` for each channel, C standard complex normal, skip normal; A is
    kept as log(-Re A) and Im A. num_heads: groups of channels, of which a scheme speaks.
    """

    num_heads: Count = 4
    state_dim: Annotated[int, whole(2)] = 64
    start: str = "lin"
    steps: tuple[Positive, Positive] = (0.001, 0.1)

    paper: ClassVar[str] = "arXiv:2206.11893"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=8), dict(num_heads=2, state_dim=6, start="legs"))

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: LtiState | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        channels = self.num_heads, self.site().value_dim
        value = x.reshape(*x.shape[:2], *channels)
        kernel = self.kernel(channels)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        y, state = self.convolve(value, kernel, seq, lanes, carry, state)
        skip = self.param("skip", free(
            nn.initializers.normal(1.0), ("heads", "head_dim")), channels)
        y = nn.gelu((y + wide(skip) * value).astype(x.dtype), approximate=False)
        y = Dense((2, self.width), (None, "width"), ("heads", "head_dim"), use_bias=True,
                  scale=self.output_scale, name="out")(y)
        return y[:, :, 0] * nn.sigmoid(y[:, :, 1]), state

    def kernel(self, channels: tuple[int, int]):
        """The convolution's kernel, of [H,K] channels."""
        return StateSpace(channels, self.state_dim, self.start, self.steps, name="kernel")()

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> LtiState:
        return self.empty_state(batch, max_length, self.state_dim // 2)


def held(pole: jax.Array, read: jax.Array, step: jax.Array) -> Modes:
    """Zero-order hold of h' = pole h + x, y = 2 Re read h: pole, read [...,N], step [...]."""
    log_pole = pole * step[..., None]
    return Modes(log_pole, 2.0 * read * jnp.expm1(log_pole) / pole)


def bilinear(pole: jax.Array, read: jax.Array, step: jax.Array) -> Modes:
    """The bilinear rule for the same state space."""
    half = pole * step[..., None] / 2
    return Modes(jnp.log1p(half) - jnp.log1p(-half), 2.0 * read * step[..., None] / (1 - half))


class StateSpace(nn.Module):
    """The kernel of a diagonal state space for every channel: `Modes` over [H,K,N/2]."""

    channels: tuple[int, int]
    state_dim: int
    start: str
    steps: tuple[float, float]
    rule: Callable = held

    @nn.compact
    def __call__(self) -> Modes:
        if self.state_dim < 2 or self.state_dim % 2:
            raise ConfigError(f"state_dim={self.state_dim} must be even: conjugate pairs of modes")
        if self.start not in STARTS:
            raise ConfigError(f"no start '{self.start}' of the poles"
                              + did_you_mean(self.start, STARTS))
        pole, column = STARTS[self.start](self.state_dim)
        modes = (*self.channels, self.state_dim // 2)
        number = lambda name, init, shape, *axes: wide(self.param(
            name, free(init, ("heads", "head_dim", *axes)), shape))
        every = lambda a: lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(
            jnp.asarray(a, dtype), shape)
        log_step = number("log_step", log_uniform(self.steps), self.channels)
        log_rate = number("log_rate", every(np.log(-pole.real)), modes, "state")
        turn = number("frequency", every(pole.imag), modes, "state")
        read = number("read", functools.partial(_read, column=column), (*modes, 2), "state", None)
        pole = jax.lax.complex(-jnp.exp(log_rate), turn)
        return self.rule(pole, jax.lax.complex(read[..., 0], read[..., 1]), jnp.exp(log_step))

def log_uniform(steps: tuple[float, float]):
    """Initializer of logarithms of steps within `steps`."""
    low, high = (math.log(step) for step in steps)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, low, high)


def _read(key, shape, dtype=jnp.float32, *, column):
    """Standard complex normal C [...,N,2], times B."""
    normal = jax.random.normal(key, shape, dtype) / math.sqrt(2.0)
    real, imag = column.real.astype(dtype), column.imag.astype(dtype)
    return jnp.stack([normal[..., 0] * real - normal[..., 1] * imag,
                      normal[..., 0] * imag + normal[..., 1] * real], -1)


def _lin(size: int):
    return -0.5 + 1j * np.pi * np.arange(size // 2), np.ones(size // 2, complex)


def _inv(size: int):
    order = np.arange(size // 2)
    return -0.5 + 1j * size / np.pi * (size / (2 * order + 1) - 1), np.ones(size // 2, complex)


def _real(size: int):
    return -(1.0 + np.arange(size // 2)) + 0j, np.ones(size // 2, complex)


def _legs(size: int):
    pole, _, column = hippo.normal_plus_low_rank(size)
    return pole, column.real + 1j * np.clip(column.imag, -2.0, 2.0)


STARTS = {"lin": _lin, "inv": _inv, "real": _real, "legs": _legs}
