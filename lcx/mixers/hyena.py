"""Hyena: gates between long convolutions whose kernels a small network writes."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx.domains import Count, Finite, whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, ShortConv
from lcx.mixers.lti_family import SUPPORTS, LtiMixer, LtiState, by_history
from lcx.ops import conv
from lcx.types import precise, wide
from lcx.weights import free, matrix


@struct.dataclass
class HyenaState:
    """Tail of the short convolution, and the input history of each long one."""

    tail: conv.ConvState
    cores: tuple[LtiState, ...]


class Hyena(LtiMixer):
    """Hyena operator (arXiv:2302.10866) of any order N >= 2; a scheme's bias is a factor of its
    filters.

    One map and a causal convolution over 3 tokens, both with bias, give x_0 .. x_{N-1} and v; then
    v = x_n v, v = filter * v + skip v for n = N-1 .. 1, and W_o (x_0 v). The filter at distance j
    is MLP(z_j) exp(-|delta_c| j / (L - 1)), z_j = [j / (L-1), cos(f w_j), -sin(f w_j)], w_j =
    2 pi j / L and L = filter_length (train_length if None): it is not the same for two L, and goes
    on beyond it. f: linspace(1e-4, bands - 1, bands), 1e-4 for one band; delta_c: from ln(0.01) /
    1.5 to ln(0.01) / 0.3, fixed; the MLP has sin(frequency a) with one frequency per hidden channel
    for all layers, starting at `frequency` (1; 14 in the authors' language models).

    Decoding reads the whole history: the filter has no finite state. transform: "fft", or "monarch"
    for the convolutions of whole texts as products of dense matrices.
    """

    num_heads: Count = 4
    order: Annotated[int, whole(2)] = 2
    filter_width: Count = 64
    filter_layers: Count = 2
    bands: Count = 1
    frequency: Finite = 1.0
    filter_length: Count | None = None
    transform: str = "fft"

    paper: ClassVar[str] = "arXiv:2302.10866"
    finite_state: ClassVar[bool] = False
    supports = by_history(SUPPORTS)
    examples: ClassVar[tuple[dict, ...]] = (
        dict(filter_width=8), dict(num_heads=2, order=3, filter_width=6, filter_layers=1, bands=2))

    def site(self) -> Site:
        if self.order < 2:
            raise ConfigError(f"order={self.order}: a Hyena operator has at least 2")
        return super().site()

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: HyenaState | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim, longs = self.num_heads, self.site().value_dim, self.order - 1
        parts = Dense((self.order + 1, self.width), (None, "channels"), use_bias=True,
                      name="in")(x)
        parts, tail = ShortConv(3, use_bias=True, name="conv")(
            parts.reshape(*x.shape[:2], -1), seq, None if state is None else state.tail)
        *gates, value = jnp.split(parts, self.order + 1, axis=-1)
        filters = Filter((longs, heads, dim), self.filter_width, self.filter_layers, self.bands,
                         self.frequency, self.filter_length or self.train_length, name="filter")()
        skip = wide(self.param("skip", free(
            nn.initializers.normal(1.0), (None, "heads", "head_dim")), (longs, heads, dim)))
        cores = (None,) * longs if state is None else state.cores
        lanes, carry = self.see(x, seq, None if state is None else cores[0].carry, shared)
        after = []
        for n, gate in enumerate(gates[:0:-1]):
            apart = (value * gate).reshape(*x.shape[:2], heads, dim)
            y, core = self.convolve(apart, filters.one(n), seq, lanes, carry, cores[n])
            value = (y + skip[n] * apart).astype(x.dtype).reshape(x.shape)
            after.append(core)
        out = Dense((self.width,), ("width",), ("channels",), use_bias=True,
                    scale=self.output_scale, name="out")(gates[0] * value)
        return out, None if state is None else HyenaState(tail, tuple(after))

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> HyenaState:
        tail = conv.init_state(batch, 3, (self.order + 1) * self.width, dtype)
        return HyenaState(tail, (self.empty_state(batch, max_length),) * (self.order - 1))


@struct.dataclass
class Implicit:
    """Kernels [N,H,K] as a network of the distance: layers (kernel, bias), their common frequency
    and the window's rate."""

    layers: tuple
    frequency: jax.Array
    out: jax.Array
    rate: jax.Array
    length: int = struct.field(pytree_node=False)
    bands: int = struct.field(pytree_node=False)

    def one(self, n: int) -> Implicit:
        """The n-th kernel [H,K]."""
        return self.replace(out=self.out[:, n], rate=self.rate[n])

    def taps(self, length: int) -> jax.Array:
        """Rows 0..length-1."""
        return self.at(wide(jnp.arange(length)))

    def at(self, distance: jax.Array) -> jax.Array:
        """Distances [L] -> [L,...channels]."""
        time = (distance / max(1, self.length - 1))[:, None]
        angle = 2 * np.pi * distance[:, None] / self.length * wide(
            np.linspace(1e-4, self.bands - 1 if self.bands > 1 else 1e-4, self.bands))
        hidden = jnp.concatenate([time, jnp.cos(angle), -jnp.sin(angle)], -1)
        for kernel, bias in self.layers:
            hidden = jnp.sin(self.frequency * (precise("lc,cd->ld", hidden, kernel) + bias))
        fade = jnp.exp(-time.reshape(-1, *[1] * self.rate.ndim) * self.rate)
        return precise("lc,c...->l...", hidden, self.out) * fade


class Filter(nn.Module):
    """The network of the filters, with kernels and biases uniform within 1/sqrt(fan_in)."""

    channels: tuple[int, int, int]
    width: int
    layers: int
    bands: int
    start: float
    length: int

    @nn.compact
    def __call__(self) -> Implicit:
        def uniform(fan_in):
            bound = 1 / math.sqrt(fan_in)
            return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
                key, shape, dtype, -bound, bound)

        number = lambda name, kind, init, shape, *axes: wide(self.param(
            name, kind(init, axes), shape))
        layers, inputs = [], 1 + 2 * self.bands
        for n in range(self.layers + 1):
            init = uniform(inputs)
            layers.append((
                number(f"kernel_{n}", matrix, init, (inputs, self.width), "positions", "rank"),
                number(f"bias_{n}", free, init, (self.width,), "rank")))
            inputs = self.width
        frequency = number("frequency", free, nn.initializers.constant(self.start), (self.width,),
                           "rank")
        out = number("out", matrix, uniform(self.width), (self.width, *self.channels),
                     "rank", None, "heads", "head_dim")
        rate = np.linspace(-math.log(0.01) / 1.5, -math.log(0.01) / 0.3, math.prod(self.channels))
        return Implicit(tuple(layers), frequency, out, wide(rate.reshape(self.channels)),
                        self.length, self.bands)
