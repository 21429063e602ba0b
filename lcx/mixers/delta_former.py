"""DeltaFormer: softmax attention over values that are corrected before they are written."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence
from lcx.layers import Dense
from lcx.mixers import QUADRATIC
from lcx.mixers.attention import Attention
from lcx.ops import pairs
from lcx.ops.attention import delta_former
from lcx.types import wide


class DeltaFormer(Attention):
    """DeltaFormer (arXiv:2505.19488): u_i = v_i - beta_i sum_{j<i} p_ij u_j, o_i = sum_j a_ij u_j.

    p and a are softmaxes of the same logits over the strict past and over the past: the delta rule
    with a softmax for its kernel. All lanes act in both stages. Keys may be shared by groups of
    query heads; u is of each query head, and takes the place of the values in a stream's cache.
    bounded: beta = sigmoid(x . w + b); without it beta is the linear map itself, as in the layer of
    flash-linear-attention, where |beta| > 1 may grow from token to token.
    """

    bounded: bool = True

    paper: ClassVar[str] = "arXiv:2505.19488"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=2), dict(bounded=False, qk_norm=True))

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        if self.window is not None:
            raise ConfigError("delta_former corrects values by the whole past: leave out window")
        site, scale = self.site(), self.scale()
        query, key, value = self.projected(x)
        value = pairs.repeat_heads(value, site.num_heads)
        beta = Dense((site.num_heads,), ("heads",), use_bias=True, name="beta")(x)
        beta = jax.nn.sigmoid(wide(beta)) if self.bounded else wide(beta)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        keys, total, slot, state = self.remember(key, value, seq, lanes, carry, state)
        queries = pairs.Queries(query, seq, total, pairs.path_of(lanes.transport),
                                pairs.extras_of(lanes), slot)

        inner = dict(query=query, key=key, value=value, beta=beta, scale=scale,
                     rotary_dim=site.rotary_dim)
        self.sow("intermediates", "inner", self.named("delta_former", inner))
        u = delta_former.corrected(queries, keys, value, beta, lanes, rotary_dim=site.rotary_dim,
                                   scale=scale, form="dense" if self.form == QUADRATIC else
                                   "blocked", chunk=self.chunk)
        self.sow("intermediates", "outer", u)
        u = u.astype(x.dtype)

        def write(keys):
            new = u.astype(keys.value.dtype)
            return keys.replace(
                value=jax.lax.dynamic_update_slice_in_dim(keys.value, new, slot, 1))

        if state is not None:
            kept = state.cache
            state = state.replace(cache=kept.replace(keys=write(kept.keys)))
        out = self.softmax(queries, write(keys), lanes, (key, u), scale=scale)
        return self.merged(x, out), state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, site.key_dim, site.key_dim,
                                dtype, value_heads=site.num_heads)
