"""Based: linear attention with the first terms of the softmax's exponential."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense
from lcx.mixers.kernel_family import KernelMixer


class Based(KernelMixer):
    """Taylor linear attention of Based (arXiv:2402.18668): weights 1 + z + z^2/2 over their sum.

    z = q.k / sqrt(feature_dim); the weight is that of exp(z) to second order and never below 1/2.
    Queries and keys have `feature_dim` channels per head (the state has 1 + f + f(f+1)/2 rows),
    values width/num_heads; no norm, no gate, W_o. Transports and temperature act on z, a bias is a
    factor of the weight. Projections start normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    feature_dim: Count = 16

    coefficients = (1.0, 1.0, 0.5)
    paper: ClassVar[str] = "arXiv:2402.18668"
    examples: ClassVar[tuple[dict, ...]] = (dict(feature_dim=4), dict(num_heads=2, feature_dim=6))

    def site(self) -> Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        return Site(self.num_heads, self.num_heads, self.feature_dim, self.feature_dim, self.width,
                    self.train_length, value_dim=self.width // self.num_heads)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim, value_dim = self.num_heads, self.feature_dim, self.site().value_dim
        query = Dense((heads, dim), ("heads", "features"), name="query")(x)
        key = Dense((heads, dim), ("heads", "features"), name="key")(x)
        query, key = self.prepared(query, key)
        value = Dense((heads, value_dim), ("heads", "value_dim"), name="value")(x)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.weigh(query, key, value, seq, lanes, carry, state, scale=dim**-0.5)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def prepared(self, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries and keys as the kernel compares them."""
        return query, key

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_kernel_state(batch, max_length, self.site().value_dim, dtype)
