"""What linear attention with a gate per *channel* does with each lane.

The recurrence is S_t = diag(exp g_t) T_t S_{t-1} + k_t v_t^T: a scheme's transport acts first, the
mixer's own gates after it. A rotation does not commute with gates that differ inside a pair, so it
is part of the transition (rotate, then decay) and queries and keys stay as they are; that depends
only on the tokens in between, where turning both by their own phases would not.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support, refuses
from lcx.mixers.linear_family import SUPPORTS, LinearMixer, MemoryState, channel_decay
from lcx.ops import endpoint, pairs
from lcx.ops.linear import linear_attention
from lcx.ops.untied import Untied
from lcx.types import wide, wide_dtype

_TURNS = Support((QUADRATIC, CHUNKED, STEP), code="R10", reason=(
    "gates that differ inside a pair do not commute with its rotation: each token's transition "
    "turns, then fades"))
_UNTIED = "unimplemented: a ring buffer of near keys whose far state turns with untied gates"
VECTOR_SUPPORTS = {
    **SUPPORTS,
    L.Rotation: _TURNS,
    L.ContentRotation: _TURNS,
    L.FeatureMap: refuses("R10", "a map of the endpoints is no transition that fades channel by "
                          "channel: the weight of a pair would depend on where it stands"),
    L.Piecewise: Support((QUADRATIC,), {CHUNKED: _UNTIED, STEP: _UNTIED}),
}


class VectorMixer(LinearMixer):
    """Shared by mixers that call `mix(..., log_decay=[B,T,H,K])`; they have no normaliser."""

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

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """As in the family, but a path transport has no form over pairs: one chunk stands in."""
        needs = super().over_pairs(lanes)
        return needs and not isinstance(lanes.transport, L.Householder)

    def _over_memory(self, query, key, value, seq, lanes, carry, state, log_decay, eps):
        batch, length, heads, size = query.shape
        for bias in lanes.bias:
            log_decay = log_decay + wide(bias.increment)[..., None]
        transport = lanes.transport
        if isinstance(transport, L.Diagonal):
            log_decay = log_decay + channel_decay(None, transport, query)
            transport = transport.rotation
        last = L.nothing_seen(batch, lanes.axes)
        if state is not None:
            last = L.Last(state.ids, state.segment)
        step, starts, last = L.advance(seq, last)
        rows = dict(query=query, key=pairs.repeat_heads(key, heads), log_decay=log_decay,
                    value=pairs.repeat_heads(endpoint.turn_values(value, seq, lanes.value), heads))
        if seq.segment is not None or state is not None:
            rows["start"] = jnp.broadcast_to(starts, (batch, length))
        fits = lambda a: jnp.broadcast_to(pairs.repeat_heads(a, heads),
                                          (batch, length, heads, *a.shape[3:]))
        options = {}
        match transport:
            case L.Rotation():
                # a query at i would see key j turned back by what lies between them
                rows["rotation"] = fits(-L.phase(transport, step)[:, :, None].repeat(heads, 2))
                rows["query"] = endpoint.amplified(query, transport)
                options = dict(interleaved=transport.interleaved)
            case L.ContentRotation():
                rows["rotation"] = fits(-wide(transport.step))
                options = dict(interleaved=transport.interleaved)
            case L.Householder(vector, beta):
                rows = _path_first(rows, fits(vector), fits(beta))
        path = isinstance(transport, L.Householder)
        size = rows["query"].shape[1] if self.form == QUADRATIC else self.chunk
        options |= {} if size is None else dict(chunk=size)
        out, memory = linear_attention(
            **rows, **options, state=None if state is None else state.memory,
            form="recurrent" if self.form == STEP else "chunked")
        out = endpoint.turn_values(out[:, 1::2] if path else out, seq, lanes.value, sign=-1)
        if state is not None:
            state = MemoryState(memory.astype(state.memory.dtype), None, last.segment, carry,
                                last.ids)
        return out, state

    def _gated(self, lanes: L.Lanes, log_decay) -> L.Lanes:
        """The mixer's own gates, which need not be arrays yet, as a part of the transport."""
        transport, rotation = lanes.transport, lanes.transport
        if isinstance(log_decay, jax.Array):  # the floor of ops.linear: -inf has no integral
            log_decay = jnp.maximum(log_decay, math.log(jnp.finfo(log_decay.dtype).tiny))
        if isinstance(transport, L.Diagonal):
            rotation = transport.rotation
            if isinstance(log_decay, jax.Array):
                log_decay = log_decay + channel_decay(None, transport, log_decay)
        gated = L.Diagonal(log_decay) if rotation is None else Untied(log_decay, rotation)
        return lanes.replace(transport=gated)

    def empty_state(self, batch: int, max_length: int, value_heads: int, value_dim: int, dtype):
        """As in the family; the state of a rotation also knows the last ids."""
        site, (lanes, _) = self.site(), self.structure(batch)
        gate = jax.ShapeDtypeStruct((1, 1, site.num_heads, site.key_dim), wide_dtype())
        state = super().empty_state(batch, max_length, value_heads, value_dim, dtype,
                                    log_decay=gate)
        if isinstance(state, MemoryState):
            state = state.replace(ids=L.nothing_seen(batch, lanes.axes).ids)
        return state


def _path_first(rows: dict, vector: jax.Array, beta: jax.Array) -> dict:
    """Each token as two: I - beta w w^T, writing nothing; then its gates, its write, its read."""
    batch, length = beta.shape[:2]
    none = {name: jnp.zeros_like(a) for name, a in rows.items()}
    spare = rows["query"].shape[-1] - vector.shape[-1]
    vector = jnp.pad(vector, [(0, 0)] * 3 + [(0, spare)])
    first = dict(none, erase=vector, beta=beta)
    second = dict(rows, erase=jnp.zeros_like(vector), beta=jnp.zeros_like(beta))
    if "start" in rows:
        first["start"], second["start"] = rows["start"], none["start"]

    def weave(a, b):
        return jnp.stack([a.astype(b.dtype), b], 2).reshape(batch, 2 * length, *b.shape[2:])

    return {name: weave(first[name], second[name]) for name in second}
