"""Native sparse attention: compressed blocks, selected blocks and a window, gated per head."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence
from lcx.layers import Dense
from lcx.mixers import QUADRATIC
from lcx.mixers.attention import Attention
from lcx.mixers.selected_family import SUPPORTS
from lcx.ops import pairs
from lcx.ops.attention import compressed
from lcx.ops.attention.selected import BestOfGroup


class Nsa(Attention):
    """Native sparse attention (arXiv:2502.11089) in flash-linear-attention's form: three branches
    over the same keys and values, o = g_1 compressed + g_2 selected + g_3 window, g = sigmoid(W x)
    per query head.

    compressed: softmax over the means of whole earlier blocks of `block` tokens, nothing at first;
    selected: softmax over the tokens of `top` blocks, those to which the query heads of a key head
    give the largest mean probability among whole blocks, with the first block, the own one and the
    one before it always among them; window: the last tokens, itself included. The paper compresses
    overlapping blocks by a learned map instead of a mean.

    Means are of keys after their transport. The choice sees no bias and no temperature; a mean
    block has the bias of its last token (the paper has no bias; this is a convention of lcx).
    Blocks are counted from the start of the document. Masks are computed for a chunk of queries at
    a time: memory is that of chunked attention, and so is the cost; a stream keeps every key.
    """

    num_kv_heads: Count | None = 1
    block: Count = 64
    top: Annotated[int, whole(3)] = 16
    window: Count | None = 512

    family = "selected"
    supports = SUPPORTS
    paper: ClassVar[str] = "arXiv:2502.11089"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(block=2, top=4, window=3), dict(num_kv_heads=2, block=3, top=3, window=5))

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        if self.top < 3 or min(self.block, self.window or 0) < 1:
            raise ConfigError("nsa needs block >= 1, window >= 1 and top >= 3: the first block, "
                              f"the own one and the one before it; not {self.block}, {self.window} "
                              f"and {self.top}")
        query, key, value = self.projected(x)
        branch = Dense((self.num_heads, 3), ("heads", None), name="branch")(x)
        branch = jax.nn.sigmoid(branch)[..., None]
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        keys, total, slot, state = self.remember(key, value, seq, lanes, carry, state)
        queries = pairs.Queries(query, seq, total, pairs.path_of(lanes.transport),
                                pairs.extras_of(lanes), slot)
        scale, own = self.scale(), (key, value)
        chosen = BestOfGroup(self.block, self.top, scale)
        out = branch[:, :, :, 0] * self.compressed(queries, keys, lanes, own, scale)
        out += branch[:, :, :, 1] * self.softmax(queries, keys, lanes, own, scale=scale,
                                                 pattern=chosen)
        out += branch[:, :, :, 2] * self.softmax(queries, keys, lanes, own, scale=scale,
                                                 window=self.window)
        return self.merged(x, out), state

    def compressed(self, queries, keys, lanes, own, scale: float) -> jax.Array:
        """The branch over means of blocks."""
        inner = dict(query=queries.query, key=own[0], value=own[1], scale=scale, block=self.block,
                     rotary_dim=self.site().rotary_dim)
        self.sow("intermediates", "inner", self.named("compressed", inner))
        chunk = queries.query.shape[1] if self.form == QUADRATIC else self.chunk
        out = compressed.attend(queries, keys, lanes, rotary_dim=self.site().rotary_dim,
                                scale=scale, block=self.block, chunk=chunk)
        self.sow("intermediates", "outer", out)
        return out

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, site.key_dim, site.key_dim,
                                dtype)
