"""Plain MLP with GELU, as in GPT-2."""

from __future__ import annotations

import flax.linen as nn
import jax

from lcx.domains import Count
from lcx.layers import Dense


class Plain(nn.Module):
    """W_out gelu(W_in x): [B,T,D] -> [B,T,D]; hidden defaults to four times the width."""

    width: int
    output_scale: float = 1.0
    hidden: Count | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.hidden or 4 * self.width
        y = nn.gelu(Dense((hidden,), ("mlp",), name="in")(x))
        return Dense((self.width,), ("width",), ("mlp",), scale=self.output_scale, name="out")(y)
