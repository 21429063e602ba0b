"""HGRN2: gated linear recurrence with a matrix state, whose key is what its gate lets go."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import BelowOne, Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.vector_family import VectorMixer
from lcx.types import wide
from lcx.weights import free


class Hgrn2(VectorMixer):
    """HGRN2 (arXiv:2404.07904): S_t = diag(a_t) S_{t-1} + (1 - a_t) v_t^T, o_t = S_t^T q_t.

    q = SiLU(W_q x) K^-1/2; a_t = b + (1 - b) sigmoid(W_f x), summed in log space; out = W_o
    norm(o), the norm an RMS of the full width with gain. head_dim: K, the "expand ratio" (published
    models take 128), V = width/num_heads. lower_bound: b in [0, 1); the published model learns one
    per layer that grows with the depth from 0 in the first, which a layer alone cannot know: give
    each its own. A scheme fades the memory, never the key 1 - a. Projections start normal with
    variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    lower_bound: BelowOne = 0.0

    paper: ClassVar[str] = "arXiv:2404.07904"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=6, lower_bound=0.4))

    def site(self) -> Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        if not 0 <= self.lower_bound < 1:
            raise ConfigError(f"lower_bound={self.lower_bound} must be in [0, 1)")
        value_dim = self.width // self.num_heads
        dim = self.head_dim or value_dim
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=value_dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        heads, dim, value_dim = site.num_heads, site.key_dim, site.value_dim
        query = nn.silu(Dense((heads, dim), ("heads", "head_dim"), name="query")(x)) * dim**-0.5
        gate = wide(Dense((heads, dim), ("heads", "head_dim"), name="forget")(x))
        value = Dense((heads, value_dim), ("heads", "value_dim"), name="value")(x)
        log_decay = nn.log_sigmoid(gate)
        if self.lower_bound:
            low = jnp.asarray(self.lower_bound, log_decay.dtype)
            log_decay = jnp.logaddexp(jnp.log(low), jnp.log1p(-low) + log_decay)
        key = ((1 - self.lower_bound) * nn.sigmoid(-gate)).astype(x.dtype)  # 1 - a, all its digits
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.mix(query, key, value, seq, lanes, carry, state, log_decay=log_decay)
        out = RmsNorm(eps=1e-5, affine=False, name="norm")(out.reshape(x.shape)).reshape(out.shape)
        gain = self.param("norm_scale", free(
            nn.initializers.ones_init(), ("heads", "value_dim")), (heads, value_dim))
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out * gain.astype(out.dtype))
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, max_length, self.num_heads, self.site().value_dim, dtype)
