"""Monarch Mixer: a gated long convolution beside a plain one, by products of dense matrices."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Finite
from lcx.lanes import Lanes, Sequence
from lcx.layers import Dense, ShortConv
from lcx.mixers.hyena import Filter, HyenaState
from lcx.mixers.lti_family import SUPPORTS, LtiMixer, LtiState, by_history
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class MonarchMixer(LtiMixer):
    """Monarch Mixer (M2, arXiv:2310.12109), causal: W_o (x_2 (f * (x_1 v)) + g * x), x the input.

    One map and a causal convolution over 3 tokens, both with bias, give x_1, x_2 and v; each * adds
    skip times its input, skip standard normal. f and g are filters of two networks of their own,
    written and faded as those of `hyena` (which see), sines starting at frequency 10; `residual`
    False leaves g out: a Hyena operator of order 2. Numbers as in the authors' M2-BERT, whose code
    also learns the networks' inputs at a rate of 1e-5; here they are fixed.

    transform: "monarch" computes the convolutions of whole texts by Fourier transforms as products
    of dense matrices, zeros appended, which keeps them causal; "fft" by the library's transform.
    Decoding reads the whole history: the filters have no finite state.
    """

    num_heads: Count = 4
    filter_width: Count = 128
    filter_layers: Count = 2
    bands: Count = 2
    frequency: Finite = 10.0
    filter_length: Count | None = None
    residual: bool = True
    transform: str = "monarch"

    paper: ClassVar[str] = "arXiv:2310.12109"
    finite_state: ClassVar[bool] = False
    supports = by_history(SUPPORTS)
    examples: ClassVar[tuple[dict, ...]] = (
        dict(filter_width=8),
        dict(num_heads=2, filter_width=6, bands=1, filter_layers=1, residual=False))

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: HyenaState | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        apart = lambda a: a.reshape(*x.shape[:2], self.num_heads, -1)
        parts = Dense((3, self.width), (None, "channels"), use_bias=True, name="in")(x)
        parts, tail = ShortConv(3, use_bias=True, name="conv")(
            parts.reshape(*x.shape[:2], -1), seq, None if state is None else state.tail)
        before, after, value = jnp.split(parts, 3, axis=-1)
        cores = (None, None) if state is None else state.cores
        lanes, carry = self.see(x, seq, None if state is None else cores[0].carry, shared)

        def filtered(name, a, core):
            kernel = Filter((1, self.num_heads, self.site().value_dim), self.filter_width,
                            self.filter_layers, self.bands, self.frequency,
                            self.filter_length or self.train_length, name=name)().one(0)
            skip = wide(self.param(f"{name}_skip", free(
                nn.initializers.normal(1.0), ("heads", "head_dim")), kernel.rate.shape))
            y, core = self.convolve(apart(a), kernel, seq, lanes, carry, core)
            return (y + skip * apart(a)).astype(x.dtype).reshape(x.shape), core

        y, core = filtered("filter", value * before, cores[0])
        y, kept = after * y, [core]
        if self.residual:
            straight, core = filtered("residual", x, cores[1])
            y, kept = y + straight, [*kept, core]
        out = Dense((self.width,), ("width",), ("channels",), use_bias=True,
                    scale=self.output_scale, name="out")(y)
        return out, None if state is None else HyenaState(tail, tuple(kept))

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> HyenaState:
        tail = conv.init_state(batch, 3, 3 * self.width, dtype)
        empty: LtiState = self.empty_state(batch, max_length)
        return HyenaState(tail, (empty,) * (1 + self.residual))
