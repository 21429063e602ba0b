"""Lightning attention: linear attention that forgets at ALiBi's rates, slower in later layers."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, Whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.linear_family import LinearMixer


class Lightning(LinearMixer):
    """Lightning attention as in MiniMax-01 (arXiv:2401.04658, arXiv:2501.08313).

    q, k, v = SiLU(W x), no scale; head h (from 1) of H decays by 2^(-8h/H) per token, times
    1 - layer / (depth - 1 + 1e-5) + 1e-5; the layer returns W_o (sigmoid(W_g x) * norm(o)), an RMS
    norm of all heads together, with a gain. A mixer is not told where it stands: give `layer`
    (from 0) and `depth`; as published, the last layer keeps 1e-5 of its rates, next to no decay.

    head_dim: width/num_heads if None. Projections start normal with variance 1/fan_in. Without
    decay of its own it is a linear layer under the scheme `alibi`.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    layer: Whole = 0
    depth: Count = 1

    paper: ClassVar[str] = "arXiv:2501.08313"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, head_dim=8, layer=3, depth=8))

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
        heads, dim = self.num_heads, self.site().key_dim
        dense = lambda name: Dense((heads, dim), ("heads", "head_dim"), name=name)(x)
        query, key, value = (nn.silu(dense(name)) for name in ("query", "key", "value"))
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        # Behind a barrier, or XLA for GPU folds the sums of this constant for seconds at compile.
        rate = jax.lax.optimization_barrier(jnp.asarray(self.log_decay()))
        out, state = self.mix(query, key, value, seq, lanes, carry, state, log_decay=rate)
        flat = out.reshape(*out.shape[:2], heads * dim)
        out = RmsNorm("channels", name="norm")(flat).reshape(out.shape) * nn.sigmoid(dense("gate"))
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_heads, site.value_dim, dtype,
                                log_decay=True)

    def log_decay(self) -> np.ndarray:
        """Log gate per token and head, [H] float64."""
        if not 0 <= self.layer < self.depth:
            raise ConfigError(f"layer={self.layer} must lie in 0..depth-1, depth={self.depth}")
        rate = 2.0 ** (-8.0 * np.arange(1, self.num_heads + 1) / self.num_heads)
        return -rate * (1 - self.layer / (self.depth - 1 + 1e-5) + 1e-5)
