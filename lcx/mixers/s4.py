"""S4: a state space whose matrix is diagonal plus low rank, which HiPPO-LegS is."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.mixers.lti_family import LtiState
from lcx.mixers.s4d import S4d, log_uniform
from lcx.ops import hippo
from lcx.ops.conv import Dplr, dplr
from lcx.types import wide
from lcx.weights import free


class S4(S4d):
    """S4 (arXiv:2111.00396): the layer of S4D around h' = (Lambda - P P^*) h + B x, y = 2 Re C h.

    The bilinear rule makes it discrete; the kernel is a Fourier transform of Cauchy sums, the step
    a matrix per channel. start: "legs" (HiPPO-LegS, not normalised) is the only one. kernel_length
    (train_length if None): what C is kept for, as C (I - A^length); longer texts need the powers
    of A too, in training as well, and so does a stream.
    """

    start: str = "legs"
    kernel_length: Count | None = None

    paper: ClassVar[str] = "arXiv:2111.00396"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=6), dict(num_heads=2, state_dim=4, kernel_length=40))

    def kernel(self, channels: tuple[int, int]) -> Dplr:
        if self.start != "legs":
            raise ConfigError(f"s4 starts from 'legs', not '{self.start}'; s4d has others")
        return LowRank(channels, self.state_dim, self.steps,
                       self.kernel_length or self.train_length, name="kernel")()

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> LtiState:
        return self.empty_state(batch, max_length, self.state_dim // 2)


class LowRank(nn.Module):
    """The kernel of a diagonal plus low-rank state space for every channel."""

    channels: tuple[int, int]
    state_dim: int
    steps: tuple[float, float]
    length: int

    @nn.compact
    def __call__(self) -> Dplr:
        if self.state_dim < 2 or self.state_dim % 2:
            raise ConfigError(f"state_dim={self.state_dim} must be even: conjugate pairs of modes")
        pole, low, column = hippo.normal_plus_low_rank(self.state_dim)
        modes = (*self.channels, self.state_dim // 2)
        names = ("heads", "head_dim", "state")

        def number(name, init, shape, axes):
            return wide(self.param(name, free(init, axes), shape))

        def complex_number(name, init):
            parts = number(name, init, (*modes, 2), (*names, None))
            return jax.lax.complex(parts[..., 0], parts[..., 1])

        def fixed(value):
            parts = np.stack([value.real, value.imag], -1)
            return lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(
                jnp.asarray(parts, dtype), shape)

        real = lambda value: lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(
            jnp.asarray(value, dtype), shape)
        step = jnp.exp(number("log_step", log_uniform(self.steps), self.channels, names[:2]))
        rate = number("log_rate", real(np.log(-pole.real)), modes, names)
        turn = number("frequency", real(pole.imag), modes, names)
        step, pole = step[..., None], jax.lax.complex(-jnp.exp(rate), turn)
        kernel = Dplr(pole * step, complex_number("low_rank", fixed(low)) * jnp.sqrt(step),
                      complex_number("column", fixed(column)) * step, pole, self.length)

        def read(key, shape, dtype=jnp.float32):
            normal = jax.random.normal(key, shape, dtype) / np.sqrt(2.0)
            start = dplr.start_read(jax.lax.complex(normal[..., 0], normal[..., 1]), kernel)
            return jnp.stack([start.real, start.imag], -1).astype(dtype)

        return kernel.replace(read=complex_number("read", read))
