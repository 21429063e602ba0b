"""Gated slot attention: a few slots hold all keys and values, and a softmax chooses among them."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.layers import Dense, RmsNorm
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support
from lcx.mixers.linear_supports import SUPPORTS
from lcx.ops import endpoint, pairs
from lcx.ops.attention import cache
from lcx.ops.linear import linear_attention, quadratic
from lcx.ops.linear.slots import faded_sums, slot_memory
from lcx.types import wide, wide_dtype


@struct.dataclass
class GsaState:
    """Slots' keys [B,H,K,M] and values [B,H,M,V], wide, or caches of what the two passes weigh pair
    by pair; segment [B] of the last token; what the scheme remembers."""

    keys: jax.Array | cache.KeyCache
    values: jax.Array | cache.KeyCache
    segment: jax.Array
    carry: Any


class Gsa(Mixer):
    """Gated slot attention (arXiv:2409.07146), two linear passes over M slots per head.

    f = sigmoid(W_f x)^(1/8) per slot; keys K~ = diag(f) K~ + (1 - f) k^T and values
    V~ = diag(f) V~ + (1 - f) v^T; o = V~^T softmax(K~ q), no scale; the layer returns
    W_o RMSNorm(SiLU(o)), the norm over all heads together with a gain and eps 1e-5. q, k and v pass
    SiLU.

    A transport and a bias act where tokens are compared, in the first pass: a slot's logit is a sum
    over keys, of which a bias weighs each by exp(bias). What lanes do to values acts in the second;
    a temperature is that of the softmax over slots, which have no position.

    num_slots: M, the head's channels if None; head_dim: width/num_heads if None. Projections start
    normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    num_slots: Count | None = None

    family: ClassVar[str] = "slots"
    paper: ClassVar[str] = "arXiv:2409.07146"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, head_dim=8, num_slots=5))
    supports = {**SUPPORTS, L.Temperature: Support((QUADRATIC, CHUNKED, STEP))}

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
        run = self._over_pairs if self.over_pairs(lanes) else self._over_memory
        out, state = run(query, key, value, gate, seq, lanes, carry, state)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        flat = nn.silu(out).reshape(*out.shape[:2], heads * dim)
        out = RmsNorm("channels", eps=1e-5, name="norm")(flat).reshape(out.shape)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """Whether these lanes, in this form, need the weights of all pairs."""
        missing = [self.check_form(lane, lanes) for lane in lanes.values()]
        return self.form == QUADRATIC or any(STEP in forms for forms in missing)

    def _over_memory(self, query: jax.Array, key: jax.Array, value: jax.Array, gate: jax.Array,
                     seq: L.Sequence, lanes: L.Lanes, carry: Any, state: GsaState | None):
        """query, key, value [B,T,H,K], log gate of the slots [B,T,H,M] -> [B,T,H,V], next state."""
        transport, query, key = endpoint.in_basis(lanes.transport, query, key)
        path = {}
        width = lambda a: jnp.pad(wide(a), [(0, 0)] * 3 + [(0, key.shape[-1] - a.shape[-1])])
        fits = lambda a: jnp.broadcast_to(a, (len(key), *a.shape[1:]))
        if isinstance(transport, L.Diagonal):
            path = dict(fade=fits(width(transport.increment)))
            transport = transport.rotation
        if isinstance(transport, L.Householder):
            path = dict(erase=fits(width(transport.vector)), beta=fits(transport.beta))
        elif transport is not None:
            token = pairs.path_of(transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                transport, self.site().rotary_dim)
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
                                  **path, **options)
        weights = self._chosen(slots, lanes)
        content = endpoint.turn_values(value, seq, lanes.value)
        out, values = linear_attention(weights.astype(value.dtype), write.astype(value.dtype),
                                       content, log_decay=gate, state=before[1], **options)
        out = endpoint.turn_values(out, seq, lanes.value, sign=-1)
        if state is not None:
            state = GsaState(keys.astype(state.keys.dtype), values.astype(state.values.dtype),
                             last.segment, carry)
        return out, state

    def _over_pairs(self, query, key, value, gate, seq, lanes, carry, state):
        """The same with both passes as weights of pairs, over caches of all keys and writes."""
        write, second = -jnp.expm1(gate), _second(gate, lanes)
        path, extras = pairs.path_of(lanes.transport), pairs.extras_of(lanes)
        total = pairs.integrals(lanes, None if state is None else state.keys.total)
        gates = pairs.integrals(second, None if state is None else state.values.total)
        arrived = seq.replace(length=None)
        keys, slot = pairs.Keys(key, value[..., :0], arrived, total, path, extras), 0
        writes = pairs.Keys(write, value, arrived, gates)
        if state is not None:
            keys, slot, first = cache.append(state.keys, keys)
            writes, _, last = cache.append(state.values, writes)
            state = GsaState(first, last, state.segment, carry)

        def compared(tokens, first):
            queries, gate = tokens
            queries = queries.replace(slot=slot + first)
            weights = quadratic.weights(queries, keys, lanes, self.site().rotary_dim)
            return faded_sums(weights, wide(writes.key), gate, writes.integral.decay,
                              offset=slot + first)

        queries = pairs.Queries(query, arrived, total, path, extras, None)
        slots = pairs.over_queries(compared, (queries, gates.decay),
                                   self.chunk or quadratic.CHUNK)
        weights = self._chosen(slots, lanes).astype(value.dtype)
        out = quadratic.attend(pairs.Queries(weights, seq, gates, slot=slot), writes, second,
                               rotary_dim=self._slots(), chunk=self.chunk)
        return out, state

    def _chosen(self, slots: jax.Array, lanes: L.Lanes) -> jax.Array:
        """Softmax over the slots' logits [B,T,H,M]."""
        if lanes.temperature is not None:
            slots = slots * wide(lanes.temperature.factor)[..., None]
        return jax.nn.softmax(slots, -1)

    def _slots(self) -> int:
        return self.num_slots or self.site().key_dim

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> GsaState:
        lanes, carry = self.structure(batch)
        site, slots, segment = self.site(), self._slots(), L.nothing_seen(batch).segment
        if self.over_pairs(lanes):
            keys = cache.like(lanes, batch, self.num_heads, site.key_dim, 0, dtype)
            gate = jnp.zeros((batch, 1, self.num_heads, slots), wide_dtype())
            writes = cache.like(_second(gate, lanes), batch, self.num_heads, slots, site.value_dim,
                                dtype)
            writes = writes.replace(key=gate)
            return GsaState(cache.init(keys, batch, max_length),
                            cache.init(writes, batch, max_length), segment, carry)
        empty = lambda rows, size: jnp.zeros((batch, self.num_heads, rows, size), wide_dtype())
        dim = endpoint.mapped_dim(lanes.transport, site)
        return GsaState(empty(dim, slots), empty(slots, site.value_dim), segment, carry)


def _second(gate: jax.Array, lanes: L.Lanes) -> L.Lanes:
    """What the second pass is told: the slots' own gates, and what happens to values."""
    return L.Lanes(L.Diagonal(gate), value=lanes.value)
