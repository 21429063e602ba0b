"""What linear attention with a gate per *channel* does with each lane.

The recurrence is S_t = diag(exp g_t) T_t S_{t-1} + k_t v_t^T: a scheme's transport acts first, the
mixer's own gates after it. A rotation does not commute with gates that differ inside a pair, so it
is part of the transition (rotate, then decay) and queries and keys stay as they are; that depends
only on the tokens in between, where turning both by their own phases would not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support, refuses
from lcx.mixers.linear_family import LinearMixer, MemoryState, channel_decay
from lcx.ops import endpoint, pairs
from lcx.ops.linear import linear_attention
from lcx.ops.linear import own as itself
from lcx.ops.linear.decay import floored
from lcx.ops.untied import Untied
from lcx.types import wide, wide_dtype

_TURNS = Support((QUADRATIC, CHUNKED, STEP), code="R10", reason=(
    "gates that differ inside a pair do not commute with its rotation: each token's transition "
    "turns, then fades"))
VECTOR_SUPPORTS = {
    **LinearMixer.supports,
    L.Rotation: _TURNS,
    L.ContentRotation: _TURNS,
    L.FeatureMap: refuses("R10", "a map of the endpoints is no transition that fades channel by "
                          "channel: the weight of a pair would depend on where it stands"),
}


class VectorMixer(LinearMixer):
    """Shared by mixers that call `mix(..., log_decay=[B,T,H,K])`; they have no normaliser.

    read_first: a token reads the memory after the scheme's transport, before its own gates close
    and before its own write: o_t = q_t^T T_t S_{t-1}.
    """

    family = "vector"
    supports = VECTOR_SUPPORTS
    gate_rank = 4

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        path = among is not None and isinstance(among.transport, L.Householder)
        if path and any(not isinstance(bias, L.Separable) for bias in among.bias) and (
                lane is among.transport):
            return Support(reason="beside a bias that weighs pairs, products of Householder maps "
                                  "and of gates per channel would have to be kept for every pair")
        return super().support(lane, among)

    @classmethod
    def factors(cls, transport: Any, lane: Any) -> bool:
        """As in the family: a turn between gates is no map of the query and of the key, though a
        ring can follow it where ids decide it."""
        if transport is None or isinstance(transport, L.Diagonal) and not transport.rotation:
            return True
        near = isinstance(lane, (L.Piecewise, L.EventuallyConstant))
        return near and isinstance(transport, (L.Piecewise, L.Rotation))

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """As in the family, but a path transport has no form over pairs: one chunk stands in."""
        needs = super().over_pairs(lanes)
        return needs and not isinstance(lanes.transport, L.Householder)

    def _read_at(self, total: pairs.Integrals, log_decay) -> pairs.Integrals:
        if not self.read_first or total.decay is None:
            return total
        decay = total.decay.replace(fine=total.decay.fine - floored(log_decay))
        return total.replace(decay=decay)

    def _halves(self, query, key, value, kernel, gates, starts, log_decay) -> jax.Array:
        if self.read_first:
            own = floored(log_decay)
            fade = gates - own
            key, value, own = (_next(a, starts) for a in (key, value, own))
            key, gates, kernel = key * jnp.exp(fade), own + fade, jnp.roll(kernel, -1, axis=0)
        return super()._halves(query, key, value, kernel, gates, starts, log_decay)

    def _over_memory(self, query, key, value, seq, lanes, carry, state, log_decay, eps, own=None):
        batch, length, heads, _ = query.shape
        fits = lambda a: jnp.broadcast_to(pairs.repeat_heads(a, heads),
                                          (batch, length, heads, *a.shape[3:]))
        fade = sum((wide(bias.increment)[..., None] for bias in lanes.bias),
                   jnp.zeros((1, 1, 1, 1), wide_dtype()))  # the scheme's own
        transport, query, key = endpoint.in_basis(lanes.transport, query, key)
        options, turns, erases = {}, {}, {}
        if isinstance(transport, L.Diagonal):
            fade = fade + channel_decay(None, transport, query)
            transport = transport.rotation
        last = L.nothing_seen(batch, lanes.axes)
        if state is not None:
            last = L.Last(state.ids, state.segment)
        step, starts, last = L.advance(seq, last)
        starts = jnp.broadcast_to(starts, (batch, length))
        match transport:
            case L.Rotation():
                # a query at i would see key j turned back by what lies between them
                turns = dict(rotation=fits(-L.phase(transport, step)[:, :, None].repeat(heads, 2)))
                query = endpoint.amplified(query, transport)
                options = dict(interleaved=transport.interleaved)
            case L.ContentRotation():
                turns = dict(rotation=fits(-wide(transport.step)))
                options = dict(interleaved=transport.interleaved)
            case L.Householder(vector, beta):
                spare = query.shape[-1] - vector.shape[-1]
                erases = dict(erase=jnp.pad(fits(vector), [(0, 0)] * 3 + [(0, spare)]),
                              beta=fits(beta))
        key, raw = pairs.repeat_heads(key, heads), (query, key, value)
        value = pairs.repeat_heads(endpoint.turn_values(value, seq, lanes.value), heads)
        rows = dict(query=query, key=key, value=value, log_decay=log_decay + fade, **turns)
        if seq.segment is not None or state is not None:
            rows["start"] = starts
        apart, reads = 1, 0
        if self.read_first and not turns and not erases and state is None and self.form != STEP:
            # what a token wrote, and the gate that it closed after its read, meet the next one
            key, value, gate = (_next(a, starts) for a in (key, value, log_decay))
            rows |= dict(key=(key * jnp.exp(fade)).astype(key.dtype), value=value,
                         log_decay=gate + fade)
        elif self.read_first or erases:
            apart, reads = 2, 0 if self.read_first else 1
            rows = _apart(rows, dict(log_decay=jnp.broadcast_to(fade, query.shape), **turns,
                                     **erases), log_decay, self.read_first)
        size = apart * length if self.form == QUADRATIC else self.chunk
        options |= {} if size is None else dict(chunk=size)
        out, memory = linear_attention(
            **rows, **options, state=None if state is None else state.memory,
            form="recurrent" if self.form == STEP else "chunked")
        out = endpoint.turn_values(out[:, reads::apart], seq, lanes.value, sign=-1)
        out = itself.corrected(out, own, *raw, lanes, self.read_first)
        if state is not None:
            state = MemoryState(memory.astype(state.memory.dtype), None, last.segment, carry,
                                last.ids)
        return out, state

    def _gated(self, lanes: L.Lanes, log_decay) -> L.Lanes:
        """The mixer's own gates, which need not be arrays yet, as a part of the transport."""
        transport, rotation, basis, fade = lanes.transport, lanes.transport, None, None
        if isinstance(log_decay, jax.Array):
            log_decay = floored(log_decay)
        if isinstance(transport, L.Diagonal):
            rotation, basis, fade = transport.rotation, transport.basis, log_decay
            if isinstance(log_decay, jax.Array):
                fade = channel_decay(None, transport, log_decay)
                log_decay = log_decay + fade
        if rotation is None:
            return lanes.replace(transport=L.Diagonal(log_decay, basis=basis))
        fade = fade if self.read_first else None
        return lanes.replace(transport=Untied(log_decay, rotation, self.read_first, fade))

    def empty_state(self, batch: int, max_length: int, value_heads: int, value_dim: int, dtype):
        """As in the family; the state of a rotation also knows the last ids."""
        site, (lanes, _) = self.site(), self.structure(batch)
        gate = jax.ShapeDtypeStruct((1, 1, site.num_heads, site.key_dim), wide_dtype())
        state = super().empty_state(batch, max_length, value_heads, value_dim, dtype,
                                    log_decay=gate)
        if isinstance(state, MemoryState):
            state = state.replace(ids=L.nothing_seen(batch, lanes.axes).ids)
        return state


def _next(x: jax.Array, starts: jax.Array) -> jax.Array:
    """Each token's row [B,T,H,*] where the next token stands; 0 at the starts of documents."""
    x = jnp.roll(x, 1, axis=1)
    first = starts | (jnp.arange(x.shape[1]) == 0)
    return jnp.where(first[..., None, None], 0, x)


def _apart(rows: dict, scheme: dict, own: jax.Array, read_first: bool) -> dict:
    """Each token as two: what the scheme does to the memory; the mixer's own gates and the write.

    The read comes between them or at the end. Arrays [B,T,...] -> [B,2T,...].
    """
    batch, length = own.shape[:2]
    first = {name: jnp.zeros_like(a) for name, a in (rows | scheme).items()} | scheme
    second = {name: jnp.zeros_like(a) for name, a in first.items()}
    second |= dict(key=rows["key"], value=rows["value"], log_decay=own)
    (first if read_first else second)["query"] = rows["query"]
    if "start" in rows:
        first["start"] = rows["start"]

    def weave(a, b):
        b = b.astype(jnp.result_type(a, b))
        return jnp.stack([a.astype(b.dtype), b], 2).reshape(batch, 2 * length, *b.shape[2:])

    return {name: weave(first[name], second[name]) for name in second}
