"""HGRN: a gated diagonal recurrence whose forget gates stay above a lower bound."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import BelowOne, Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.diagonal_family import DiagonalMixer
from lcx.types import wide


class Hgrn(DiagonalMixer):
    """Hierarchically gated recurrent network (arXiv:2311.04823), real form: [B,T,D] -> [B,T,D].

    f_t = b + (1 - b) sigmoid(W_f x), h_t = f_t h_{t-1} + (1 - f_t) SiLU(W_i x), and
    W_o (norm(h) * SiLU(W_g x)), the norm an RMS of all channels. The paper's complex form turns
    pairs of channels by learned angles: here that is a rotation of the scheme.

    lower_bound b: 0 in the first layer and rising with depth in the paper (a learned cumulative
    softmax, l/depth of layer l at the start). A layer does not know its depth: give each layer of
    the pattern its own. inner_width: channels of h, width if None. Maps start normal with variance
    1/fan_in.
    """

    num_heads: Count = 4
    inner_width: Count | None = None
    lower_bound: BelowOne = 0.0

    paper: ClassVar[str] = "arXiv:2311.04823"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, inner_width=24, lower_bound=0.5))

    def site(self) -> Site:
        if not 0 <= self.lower_bound < 1:
            raise ConfigError(f"lower_bound={self.lower_bound}: forget gates lie between it and 1")
        return self.channel_site(self.inner_width)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        inward = lambda name: Dense((site.num_heads, site.key_dim), ("heads", "head_dim"),
                                    name=name)(x)
        forget, value, gate = wide(inward("forget")), wide(inward("in")), inward("gate")
        log_decay = nn.log_sigmoid(forget)
        if self.lower_bound:
            log_decay = jnp.logaddexp(math.log(self.lower_bound),
                                      math.log1p(-self.lower_bound) + log_decay)
        value = (1 - self.lower_bound) * nn.sigmoid(-forget) * nn.silu(value)  # (1 - f) SiLU
        out, state = self.mix(log_decay, value, x, seq, state, shared)
        out = RmsNorm("channels", eps=1e-5, name="norm")(out.reshape(*x.shape[:2], -1))
        out = out.reshape(gate.shape) * nn.silu(gate)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, max_length)
