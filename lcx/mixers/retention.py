"""Retention: linear attention whose heads forget at fixed rates, the mixer of RetNet."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.linear_family import LinearMixer


class Retention(LinearMixer):
    """Multi-scale retention (arXiv:2307.08621): head h decays by gamma_h = 1 - 2^(-5-h) a token.

    The decay is the mixer's own; the rotation of RetNet is a scheme like any other. Keys are
    scaled by head_dim^-1/2, values are `expand_value` times as wide; out = W_o (SiLU(W_g x) *
    norm(o)), the norm an RMS of each head without gain: it also makes the row normalisers of
    RetNet's parallel form superfluous, so that all forms agree.

    head_dim: width/num_heads if None. query, key, value and gate start Xavier-uniform with gain
    2^-2.5, out with 2^-1, times the model's depth scale of residual branches.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_value: Count = 2

    paper: ClassVar[str] = "arXiv:2307.08621"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, head_dim=8, expand_value=1))

    def site(self) -> Site:
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // self.num_heads
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=self.expand_value * dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        heads, dim, value_dim = site.num_heads, site.key_dim, self.expand_value * site.key_dim
        inward, outward = _xavier(2**-2.5, (0,), (1, 2)), _xavier(0.5, (0, 1), (2,))
        dense = lambda size, axis, name: Dense((heads, size), ("heads", axis), init=inward,
                                               name=name)(x)
        query, key = dense(dim, "head_dim", "query"), dense(dim, "head_dim", "key") * dim**-0.5
        value, gate = dense(value_dim, "value_dim", "value"), dense(value_dim, "value_dim", "gate")
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        # Behind a barrier, or XLA for GPU folds the sums of this constant for seconds at compile.
        rate = jax.lax.optimization_barrier(jnp.asarray(log_decay(heads)))
        out, state = self.mix(query, key, value, seq, lanes, carry, state, log_decay=rate)
        out = nn.silu(gate) * RmsNorm("value_dim", affine=False, name="norm")(out)
        scaled = lambda *args: self.output_scale * outward(*args)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), init=scaled, name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_heads, self.expand_value * site.key_dim,
                                dtype, log_decay=True)


def log_decay(heads: int) -> np.ndarray:
    """log(1 - 2^(-5-h)) per token and head, [H] float64."""
    return np.log1p(-(2.0 ** (-5.0 - np.arange(heads))))


def _xavier(gain: float, inputs: tuple[int, ...], outputs: tuple[int, ...]):
    """Xavier-uniform of a kernel whose axes `inputs` are contracted into `outputs`."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform", in_axis=inputs,
                                            out_axis=outputs)
