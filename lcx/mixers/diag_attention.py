"""DiagAttention: softmax attention inside blocks of tokens that do not overlap."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.mixers import QUADRATIC
from lcx.mixers.attention import Attention
from lcx.mixers.softmax_family import SoftmaxState
from lcx.ops import pairs
from lcx.ops.attention import api, cache, local


class DiagAttention(Attention):
    """DiagAttention of TransNormer (arXiv:2210.10340): a query reads the keys of its own block.

    Blocks of `block` tokens, counted from the start of a document, so that the cost is linear in
    the length; the first layers of TransNormer, below `norm_attention`. Every lane has its meaning
    in a softmax, on the pairs that meet. Other options as `attention`.
    """

    block: Count = 64

    paper: ClassVar[str] = "arXiv:2210.10340"
    examples: ClassVar[tuple[dict, ...]] = (dict(block=5), dict(block=8, num_kv_heads=2))

    def attend(self, query, key, value, seq: L.Sequence, lanes: L.Lanes, carry,
               state: SoftmaxState | None, *, scale: float, window: int | None = None):
        """Attention of this call's tokens inside their blocks: [B,T,H,V], state."""
        if self.block < 1 or window is not None:
            raise ConfigError(f"diag_attention: block={self.block}, window={window}; give a "
                              "positive block and no window, which the block already is")
        self.sow("intermediates", "inner", {"core": {"diag": dict(
            query=query, key=key, value=value, scale=scale, block=self.block, index=seq.index,
            rotary_dim=self.site().rotary_dim)}})
        keys, total, slot, state = self.remember(key, value, seq, lanes, carry, state)
        keys = local.behind(keys, self.block) if state is None else keys
        queries = pairs.Queries(query, seq, total, pairs.path_of(lanes.transport),
                                pairs.extras_of(lanes), self.block)
        queries, keys = _apart(queries, self.block), _apart(keys, self.block)
        temperature, joined = lanes.temperature, lambda out: out
        run = api.backend("reference") if self.form == QUADRATIC else contextlib.nullcontext()
        if self.form != QUADRATIC:
            queries, keys, temperature, joined = local.windows(queries, keys, temperature,
                                                               self.block)
        with run:
            out = joined(api.attend(queries, keys, lanes.replace(temperature=temperature),
                                    rotary_dim=self.site().rotary_dim, scale=scale))
        self.sow("intermediates", "outer", out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        lanes, carry = self.structure(batch)
        like = cache.like(lanes, batch, site.num_kv_heads, site.key_dim, site.key_dim, dtype)
        return SoftmaxState(cache.init(like, batch, self.block, self.block), carry)


def _apart(tokens, block: int):
    """Each block as a segment of its own, numbered by the arrival of its first token."""
    seq = tokens.seq
    return tokens.replace(seq=seq.replace(segment=seq.order - seq.index % block))
