"""A short convolution between two gates: LFM2's mixer, with a memory of a few tokens."""

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
from lcx.layers import Dense
from lcx.mixers.lti_family import SUPPORTS, LtiMixer, LtiState, by_history
from lcx.types import wide
from lcx.weights import matrix


class ShortConv(LtiMixer):
    """Gated short convolution (LFM2, arXiv:2511.23404): W_o (c . conv(b . u)), [b | c | u] = W x.

    conv is causal and depthwise over `window` tokens of a document; no activation, no bias. What it
    remembers is the last inputs, whatever a scheme says. Kernel uniform within 1/sqrt(window).
    """

    num_heads: Count = 4
    window: Count = 3

    paper: ClassVar[str] = "arXiv:2511.23404"
    finite_state: ClassVar[bool] = False  # of its own: the cache holds `window` inputs
    supports = by_history(SUPPORTS)
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, window=5))

    def site(self) -> Site:
        if self.window < 1:
            raise ConfigError(f"window={self.window} must be positive")
        return super().site()

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: LtiState | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        bound, channels = 1 / math.sqrt(self.window), (self.num_heads, self.site().value_dim)
        parts = Dense((3, *channels), (None, "heads", "head_dim"), name="in")(x)
        before, after, value = jnp.moveaxis(parts, 2, 0)
        kernel = self.param("kernel", matrix(
            lambda key, shape, dtype=jnp.float32: jax.random.uniform(
                key, shape, dtype, -bound, bound), ("kernel", "heads", "head_dim")),
            (self.window, *channels))
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        y, state = self.convolve(before * value, Near(wide(kernel)), seq, lanes, carry, state)
        return Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                     name="out")(after * y.astype(x.dtype)), state

    def reach(self) -> int:
        return self.window

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> LtiState:
        return self.empty_state(batch, max_length)


@struct.dataclass
class Near:
    """A kernel of few taps: rows [W,H,K], the last of which weighs the token itself."""

    rows: jax.Array

    def taps(self, length: int) -> jax.Array:
        """Rows for the distances 0..length-1."""
        near = self.rows[::-1][:length]
        return jnp.pad(near, [(0, length - near.shape[0])] + [(0, 0)] * (near.ndim - 1))
