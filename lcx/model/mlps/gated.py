"""Gated MLP: SwiGLU (arXiv:2002.05202)."""

from __future__ import annotations

import flax.linen as nn
import jax

from lcx.domains import Count
from lcx.layers import Dense


class Gated(nn.Module):
    """W_out (silu(W_gate x) * W_in x): [B,T,D] -> [B,T,D]; hidden defaults to 8/3 of the width."""

    width: int
    output_scale: float = 1.0
    hidden: Count | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.hidden or -(-8 * self.width // 24) * 8
        both = Dense((2, hidden), (None, "mlp"), name="gate_in")(x)
        return Dense((self.width,), ("width",), ("mlp",), scale=self.output_scale, name="out")(
            nn.silu(both[..., 0, :]) * both[..., 1, :])
