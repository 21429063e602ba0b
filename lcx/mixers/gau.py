"""Gated attention unit: one head whose weights are a squared ReLU, inside a gated linear unit."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count, Expansion, NonNegative, expanded
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.mixers import QUADRATIC, Mixer
from lcx.mixers.kernel_family import empty_cache, remember
from lcx.mixers.softmax_family import SUPPORTS
from lcx.ops.attention import pointwise
from lcx.types import wide
from lcx.weights import free


class Gau(Mixer):
    """GAU (arXiv:2202.10447): W_o (u * sum_j a_ij v_j), a_ij = ReLU((q_i.k_j + bias_ij) / n)^2.

    u, v = SiLU(W x) of `expand` x width channels, one head; z = SiLU(W_z x) of `key_dim` channels,
    q = z * gain_q + shift_q, k alike. A bias acts inside the square, so that a decay of the logit
    is no decay of a memory, and there is no sum of weights.

    n: the published code takes the length of the input, which no decoder knows. Here it is
    `length`, fixed (train_length if None: the published layer at that length), or with count=True
    the tokens that a query may read. laplace: the square's smooth stand-in of MEGA
    (arXiv:2209.10655). Gains start normal with deviation `gain_deviation`, 0.02 as published, where
    a relative bias carries the first steps: without one the weights start near (0.0004 / n)^2, too
    small for an optimizer to see, and 1 is better. Shifts start at 0, projections normal with
    variance 1/fan_in.
    """

    key_dim: Count = 128
    expand: Expansion = 2.0
    length: Count | None = None
    count: bool = False
    laplace: bool = False
    gain_deviation: NonNegative = 0.02

    family: ClassVar[str] = "gau"
    supports = SUPPORTS
    paper: ClassVar[str] = "arXiv:2202.10447"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(key_dim=8), dict(key_dim=12, expand=1.5, count=True, laplace=True))

    def site(self) -> L.Site:
        return L.Site(1, 1, self.key_dim, self.key_dim, self.width, self.train_length,
                      value_dim=self.value_dim())

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        gate, value, query, key = gated_unit(self, x, ("query", "key"))
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        rows = wide(seq.index[..., None] + 1 if self.count else
                    jnp.full((*seq.index.shape, 1), self._length()))
        self.sow("intermediates", "inner", dict(query=query, key=key, value=value, scale=1.0,
                                                laplace=self.laplace, divisor=rows))
        queries, keys, state = remember(query, key, value, seq, lanes, carry, state)
        out = pointwise.attend(
            queries, keys, lanes, _laplace if self.laplace else _square, rows=rows,
            rotary_dim=self.key_dim, chunk=x.shape[1] if self.form == QUADRATIC else self.chunk)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("channels",), scale=self.output_scale,
                    name="out")(gate * out[..., 0, :])
        return out, state

    def value_dim(self) -> int:
        """Channels of u and v."""
        return expanded(self.width, self.expand)

    def _length(self) -> int:
        length = self.train_length if self.length is None else self.length
        if length < 1:
            raise ConfigError(f"gau: length={length} divides the logits; give a positive one")
        return length

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        lanes, carry = self.structure(batch)
        return empty_cache(lanes, carry, self.site(), batch, max_length, self.value_dim(), dtype)


def gated_unit(mixer: Mixer, x: jax.Array, names: tuple[str, ...]):
    """gate [B,T,E], value [B,T,1,E], and for each name its scaled and shifted base [B,T,1,K].

    To be called by a compact method of a mixer with `key_dim`, `gain_deviation`, `value_dim()`.
    """
    inner = lambda name: nn.silu(Dense((mixer.value_dim(),), ("channels",), name=name)(x))
    gate, value = inner("gate"), inner("value")[..., None, :]
    base = nn.silu(Dense((mixer.key_dim,), ("features",), name="base")(x))
    param = lambda name, init: mixer.param(name, free(
        init, (None, "features")), (len(names), mixer.key_dim)).astype(x.dtype)
    gain = param("gain_scale", nn.initializers.normal(mixer.gain_deviation))
    shift = param("shift", nn.initializers.zeros_init())
    return gate, value, *((base * g + s)[..., None, :] for g, s in zip(gain, shift))


def _over(z, bias, rows):
    return (z + bias) / jnp.swapaxes(rows, 1, 2)[..., None]


def _square(z, bias, queries, keys, rows):
    return jnp.square(nn.relu(_over(z, bias, rows)))


def _laplace(z, bias, queries, keys, rows):
    centre, deviation = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
    return jax.scipy.stats.norm.cdf(_over(z, bias, rows), centre, deviation)
