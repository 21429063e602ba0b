"""NormAttention: linear attention without a sum of weights, its output normed instead."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.linear_attention import _feature
from lcx.mixers.linear_family import LinearMixer

FEATURES = {"elu": nn.elu, "1+elu": _feature, "relu": nn.relu, "none": lambda x: x}


class NormAttention(LinearMixer):
    """NormAttention of TransNormer (arXiv:2210.10340): W_o norm(sum_j phi(q_i).phi(k_j) v_j).

    The norm is an RMS of all heads together with a gain: without the division by the sum of
    weights, gradients of the scores stay bounded. phi: `feature`, one of elu, 1+elu, relu, none.
    gated: v passes SiLU, and SiLU(W_u x) multiplies the normed output (TransNormer's later public
    form). In the paper these layers follow a first half of `diag_attention` layers.

    head_dim: width/num_heads if None. query, key, value and gate start Xavier-uniform with gain
    2^-1/2, out normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    feature: str = "elu"
    gated: bool = False

    paper: ClassVar[str] = "arXiv:2210.10340"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=8, feature="1+elu", gated=True))

    def site(self) -> Site:
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // self.num_heads
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        if self.feature not in FEATURES:
            raise ConfigError(f"feature={self.feature!r}" + did_you_mean(self.feature, FEATURES))
        heads, dim = self.num_heads, self.site().key_dim
        xavier = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform", in_axis=(0,),
                                                  out_axis=(1, 2))
        dense = lambda name: Dense((heads, dim), ("heads", "head_dim"), init=xavier, name=name)(x)
        query, key = (FEATURES[self.feature](dense(name)) for name in ("query", "key"))
        value = nn.silu(dense("value")) if self.gated else dense("value")
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.mix(query, key, value, seq, lanes, carry, state)
        flat = out.reshape(*out.shape[:2], heads * dim)
        out = RmsNorm("channels", name="norm")(flat).reshape(out.shape)
        out = nn.silu(dense("gate")) * out if self.gated else out
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_heads, site.value_dim, dtype)
