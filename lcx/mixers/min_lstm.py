"""minLSTM: an LSTM whose gates see the input alone and sum to one."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Finite
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense
from lcx.mixers.diagonal_family import DiagonalMixer
from lcx.mixers.min_gru import above_zero
from lcx.types import wide


class MinLstm(DiagonalMixer):
    """minLSTM (arXiv:2410.01201): h_t = f' h_{t-1} + i' g(W_h x), f' = f/(f+i), i' = i/(f+i).

    f = sigmoid(W_f x), i = sigmoid(W_i x); the layer returns W_o h. positive: g is that of
    `min_gru`, else the identity. forget_bias: start of the bias of f (the paper starts it higher
    to learn long dependencies; 0 in its default); the other biases start at 0, kernels normal with
    variance 1/fan_in. inner_width: channels of h, width if None.
    """

    num_heads: Count = 4
    inner_width: Count | None = None
    positive: bool = True
    forget_bias: Finite = 0.0

    paper: ClassVar[str] = "arXiv:2410.01201"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, inner_width=48, positive=False, forget_bias=1.0))

    def site(self) -> Site:
        return self.channel_site(self.inner_width)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()

        def inward(name, bias=0.0):
            return wide(Dense((site.num_heads, site.key_dim), ("heads", "head_dim"), use_bias=True,
                              bias_init=nn.initializers.constant(bias), name=name)(x))

        forget, write, hidden = inward("forget", self.forget_bias), inward("gate"), inward("in")
        odds = nn.softplus(-forget) - nn.softplus(-write)  # log of i/f
        value = nn.sigmoid(odds) * (above_zero(hidden) if self.positive else hidden)
        out, state = self.mix(-nn.softplus(odds), value, x, seq, state, shared)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, max_length)
