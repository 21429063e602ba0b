"""Linformer: a softmax over a fixed number of learned mixtures of all keys, made causal."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.mixers import CHUNKED, STEP, Mixer, Support, refuses
from lcx.mixers.linear_family import channel_decay
from lcx.ops import endpoint, pairs
from lcx.ops.linear import linear_attention
from lcx.types import wide, wide_dtype
from lcx.weights import matrix

_ALL = Support((CHUNKED, STEP))
_NO_PAIRS = refuses("R1", "a slot mixes all keys, so that no weight of one query and one key "
                    "exists; turn keys before they are mixed (a rotation, a decay inside q.k)")


@struct.dataclass
class LinformerState:
    """Mixed keys [B,H,K,R] and values [B,H,R,V], wide; segment [B] of the last token; what the
    scheme remembers."""

    keys: jax.Array
    values: jax.Array
    segment: jax.Array
    carry: Any


class Linformer(Mixer):
    """Linformer (arXiv:2006.04768): softmax(q.K~ / sqrt(K)) V~ over K~ = E^T K, V~ = F^T V.

    E and F [max_length, rank] belong to places in the document and are shared by the heads. The
    published layer mixes all tokens into each slot and is not causal; here a query reads the slots
    as they stand with its own token, K~_i = sum_{j<=i} E_j k_j^T, so that the last token of a
    document of `max_length` tokens sees what it sees in the published layer. That makes both
    products linear attention, with a state of rank x 2K numbers.

    A transport acts on keys before E, exactly, and a temperature on the slots' logits; a bias of
    query and key has no image in a slot. max_length: train_length if None; NaN beyond. share: F is
    E. E and F start uniform within 1/sqrt(rank), projections normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    rank: Count = 256
    max_length: Count | None = None
    share: bool = False

    family: ClassVar[str] = "len"
    paper: ClassVar[str] = "arXiv:2006.04768"
    forms: ClassVar[tuple[str, ...]] = (CHUNKED, STEP)
    examples: ClassVar[tuple[dict, ...]] = (
        dict(rank=6, max_length=32), dict(num_heads=2, rank=5, max_length=30, share=True))
    supports = {
        **dict.fromkeys((L.Rotation, L.ContentRotation, L.FeatureMap, L.Diagonal, L.Temperature,
                         L.ValueRotation), _ALL),
        **dict.fromkeys((L.Householder, L.Piecewise, L.Separable, L.Toeplitz, L.Rowwise,
                         L.Pairwise, L.ValueTable), _NO_PAIRS),
        L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over keys"),
    }

    def site(self) -> L.Site:
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: LinformerState | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim = self.num_heads, self.site().key_dim
        dense = lambda name: Dense((heads, dim), ("heads", "head_dim"), name=name)(x)
        query, key, value = dense("query"), dense("key"), dense("value")
        mix_keys = self._table("mix_keys")
        mix_values = mix_keys if self.share else self._table("mix_values")
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", dict(query=query, key=key, value=value, index=seq.index,
                                                mix_keys=mix_keys, mix_values=mix_values))
        out, state = self._slots(query, key, value, mix_keys, mix_values, seq, lanes, carry, state)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def _slots(self, query, key, value, mix_keys, mix_values, seq, lanes, carry, state):
        last = L.nothing_seen(query.shape[0])
        last = last if state is None else last.replace(segment=state.segment)
        _, start, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        options = dict(start=start, form="recurrent" if self.form == STEP else "chunked")
        if self.chunk is not None:
            options["chunk"] = self.chunk
        before = (None, None) if state is None else (state.keys, state.values)
        transport, query, key = endpoint.in_basis(lanes.transport, query, key)
        decay = None
        if isinstance(transport, L.Diagonal):
            decay = channel_decay(None, transport, query)
            transport = transport.rotation
        if transport is not None:
            token = pairs.path_of(transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                transport, self.site().rotary_dim)
        rows = lambda table: jnp.broadcast_to(table.at[seq.index].get(
            mode="fill", fill_value=0)[:, :, None], (*query.shape[:3], self.rank))
        slots, keys = linear_attention(query, key, rows(mix_keys), log_decay=decay,
                                       state=before[0], **options)
        slots = wide(slots) * self.site().key_dim**-0.5
        if lanes.temperature is not None:
            slots = slots * wide(lanes.temperature.factor)[..., None]
        weights = jax.nn.softmax(slots, -1).astype(value.dtype)
        content = endpoint.turn_values(value, seq, lanes.value)
        out, values = linear_attention(weights, rows(mix_values).astype(value.dtype), content,
                                       state=before[1], **options)
        out = endpoint.turn_values(out, seq, lanes.value, sign=-1)
        served = L.served(seq, mix_keys.shape[0], "linformer's table")[..., None, None]
        out = jnp.where(served, out, jnp.nan)  # beyond the table there is no mixture
        if state is not None:
            state = LinformerState(keys.astype(state.keys.dtype), values.astype(state.keys.dtype),
                                   last.segment, carry)
        return out, state

    def _table(self, name: str) -> jax.Array:
        bound = 1 / math.sqrt(self.rank)
        init = lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound,
                                                                        bound)
        return wide(self.param(name, matrix(init, ("positions", "rank")),
                               (self.max_length or self.train_length, self.rank)))

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> LinformerState:
        lanes, carry = self.structure(batch)
        transport = getattr(lanes.transport, "rotation", lanes.transport)
        empty = lambda *shape: jnp.zeros((batch, self.num_heads, *shape), wide_dtype())
        return LinformerState(empty(endpoint.mapped_dim(transport, self.site()), self.rank),
                              empty(self.rank, self.site().value_dim),
                              L.nothing_seen(batch).segment, carry)
