"""Gated slot attention: a few slots hold all keys and values, and a softmax chooses among them."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.layers import Dense, RmsNorm
from lcx.mixers import CHUNKED, STEP, Mixer, Support, refuses
from lcx.ops import endpoint, pairs
from lcx.ops.linear import linear_attention
from lcx.ops.linear.slots import slot_memory
from lcx.types import wide, wide_dtype

_ALL = Support((CHUNKED, STEP))
_LATER = Support(reason="a kernel of pairs in front of slots that forget: a quadratic first pass")


@struct.dataclass
class GsaState:
    """Slots' keys [B,H,K,M] and values [B,H,M,V], wide; segment [B] of the last token; what the
    scheme remembers."""

    keys: jax.Array
    values: jax.Array
    segment: jax.Array
    carry: Any


class Gsa(Mixer):
    """Gated slot attention (arXiv:2409.07146), two linear passes over M slots per head.

    f = sigmoid(W_f x)^(1/8) per slot; keys K~ = diag(f) K~ + (1 - f) k^T and values
    V~ = diag(f) V~ + (1 - f) v^T; o = V~^T softmax(K~ q), no scale; the layer returns
    W_o RMSNorm(SiLU(o)), the norm over all heads together with a gain and eps 1e-5. q, k and v pass
    SiLU.

    A transport and a bias act where tokens are compared, in the first pass; a temperature is that
    of the softmax over slots, which have no position. num_slots: M, the head's channels if None;
    head_dim: width/num_heads if None. Projections start normal with variance 1/fan_in.
    """

    num_heads: int = 4
    head_dim: int | None = None
    num_slots: int | None = None

    family: ClassVar[str] = "slots"
    paper: ClassVar[str] = "arXiv:2409.07146"
    forms: ClassVar[tuple[str, ...]] = (CHUNKED, STEP)
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, head_dim=8, num_slots=5))
    supports = {
        **dict.fromkeys((L.Rotation, L.ContentRotation, L.FeatureMap, L.Separable, L.Temperature,
                         L.ValueRotation), _ALL),
        **dict.fromkeys((L.Diagonal, L.Householder, L.Piecewise, L.Toeplitz, L.Rowwise, L.Pairwise,
                         L.ValueTable), _LATER),
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
    def __call__(self, x: jax.Array, seq: L.Sequence, state: GsaState | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim = self.num_heads, self.site().key_dim
        dense = lambda name: Dense((heads, dim), ("heads", "head_dim"), name=name)(x)
        query, key, value = (nn.silu(dense(name)) for name in ("query", "key", "value"))
        gate = Dense((heads, self._slots()), ("heads", "state"), name="gate")(x)
        gate = nn.log_sigmoid(wide(gate)) / 8
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", dict(query=query, key=key, value=value, gate=gate))
        out, state = self.two_passes(query, key, value, gate, seq, lanes, carry, state)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        flat = nn.silu(out).reshape(*out.shape[:2], heads * dim)
        out = RmsNorm("channels", eps=1e-5, name="norm")(flat).reshape(out.shape)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def two_passes(self, query: jax.Array, key: jax.Array, value: jax.Array, gate: jax.Array,
                   seq: L.Sequence, lanes: L.Lanes, carry: Any, state: GsaState | None):
        """query, key, value [B,T,H,K], log gate of the slots [B,T,H,M] -> [B,T,H,V], next state."""
        if lanes.transport is not None:
            token = pairs.path_of(lanes.transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                lanes.transport, self.site().rotary_dim)
        last = L.nothing_seen(query.shape[0])
        last = last if state is None else last.replace(segment=state.segment)
        _, start, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        options = dict(start=start, form="recurrent" if self.form == STEP else "chunked")
        if self.chunk is not None:
            options["chunk"] = self.chunk
        before = (None, None) if state is None else (state.keys, state.values)

        write = -jnp.expm1(gate)
        fade = sum((wide(bias.increment) for bias in lanes.bias), jnp.zeros((1, 1, 1)))
        slots, keys = slot_memory(query, key, write, gate + fade[..., None], state=before[0],
                                  **options)
        if lanes.temperature is not None:
            slots = slots * wide(lanes.temperature.factor)[..., None]
        weights = jax.nn.softmax(slots, -1)
        content = endpoint.turn_values(value, seq, lanes.value)
        out, values = linear_attention(weights.astype(value.dtype), write.astype(value.dtype),
                                       content, log_decay=gate, state=before[1], **options)
        out = endpoint.turn_values(out, seq, lanes.value, sign=-1)
        if state is not None:
            state = GsaState(keys.astype(state.keys.dtype), values.astype(state.values.dtype),
                             last.segment, carry)
        return out, state

    def _slots(self) -> int:
        return self.num_slots or self.site().key_dim

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> GsaState:
        lanes, carry = self.structure(batch)
        empty = lambda rows, size: jnp.zeros((batch, self.num_heads, rows, size), wide_dtype())
        dim = endpoint.mapped_dim(lanes.transport, self.site())
        return GsaState(empty(dim, self._slots()), empty(self._slots(), self.site().value_dim),
                        L.nothing_seen(batch).segment, carry)
