"""Plain MLP with a squared ReLU, as in Primer and Nemotron."""

from __future__ import annotations

import flax.linen as nn
import jax

from lcx.domains import Count
from lcx.layers import Dense


class SquaredRelu(nn.Module):
    """W_out relu(W_in x)^2 (arXiv:2109.08668): [B,T,D] -> [B,T,D]; hidden is 4 widths if None."""

    width: int
    output_scale: float = 1.0
    hidden: Count | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.hidden or 4 * self.width
        y = nn.relu(Dense((hidden,), ("mlp",), name="in")(x)) ** 2
        return Dense((self.width,), ("width",), ("mlp",), scale=self.output_scale, name="out")(y)
