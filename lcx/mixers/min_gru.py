"""minGRU: a GRU whose gates see the input alone, and so a diagonal recurrence."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense
from lcx.mixers.diagonal_family import DiagonalMixer
from lcx.types import wide


class MinGru(DiagonalMixer):
    """minGRU (arXiv:2410.01201): h_t = (1 - z_t) h_{t-1} + z_t g(W_h x), z_t = sigmoid(W_z x).

    The layer returns W_o h. positive: g(a) = a + 1/2 above zero and sigmoid(a) below, the paper's
    log-space version; without it g is the identity, its plain version. The state before a document
    is 0. inner_width: channels of h, width if None (the paper's expansion). Maps have biases, which
    start at 0; kernels start normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    inner_width: Count | None = None
    positive: bool = True

    paper: ClassVar[str] = "arXiv:2410.01201"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, inner_width=48, positive=False))

    def site(self) -> Site:
        return self.channel_site(self.inner_width)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        inward = lambda name: wide(Dense((site.num_heads, site.key_dim), ("heads", "head_dim"),
                                         use_bias=True, name=name)(x))
        gate, hidden = inward("gate"), inward("in")
        value = nn.sigmoid(gate) * (above_zero(hidden) if self.positive else hidden)
        out, state = self.mix(-nn.softplus(gate), value, x, seq, state, shared)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, max_length)


def above_zero(x: jax.Array) -> jax.Array:
    """g: a positive, continuous activation; x + 1/2 from 0 on, sigmoid(x) below."""
    return jnp.where(x >= 0, x + 0.5, nn.sigmoid(x))
