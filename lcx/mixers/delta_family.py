"""What the delta rule does with each lane: transports enter the transition before the erase.

S_t = (I - beta_t k_t k_t^T) T_t S_{t-1} + beta_t k_t v_t^T, o_t = q_t^T S_t. An orthogonal T_t is
the same as turning q and k (the erase key included) by their own phases; a gate is a factor of T_t.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.mixers.linear_family import channel_decay
from lcx.ops import endpoint, pairs
from lcx.ops.conv import ConvState
from lcx.ops.linear import linear_attention
from lcx.types import wide, wide_dtype

_ALL = Support((QUADRATIC, CHUNKED, STEP))
_ERASE = refuses("R3", "a factor on the weights of pairs is definable, but the erase would then "
                 "act on a memory that is not the one read: no longer a delta rule")
SUPPORTS = {
    L.Rotation: _ALL,
    L.ContentRotation: _ALL,
    L.Diagonal: _ALL,
    L.FeatureMap: refuses("R3", "a map of the endpoints that is no group of orthogonal maps is not "
                          "a transition that the memory could take before the erase"),
    L.Householder: _ALL,
    L.ValueRotation: _ALL,
    L.ValueTable: _ERASE,
    L.Rowwise: _ERASE,
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    L.Separable: _ALL,
    L.Temperature: Support((QUADRATIC, CHUNKED, STEP), code="R4", reason=(
        "a factor of a query's whole output cancels in the scale-free output norm")),
    L.Toeplitz: _ERASE,  # EventuallyConstant with it
    L.Pairwise: _ERASE,
    L.Piecewise: refuses("R3", "a rotation that depends on the pair has no transition that the "
                         "memory could take before the erase"),
}


@struct.dataclass
class DeltaState:
    """Memory [B,H,K,V] wide; the inputs that the short convolution still reads; segment [B] of the
    last token; what the scheme remembers."""

    memory: jax.Array
    conv: ConvState
    segment: jax.Array
    carry: Any


class DeltaMixer(Mixer):
    """Shared by mixers whose core is a delta rule with one decay per head."""

    family = "delta"
    supports = SUPPORTS

    def recur(self, query: jax.Array, key: jax.Array, value: jax.Array, seq: L.Sequence,
              lanes: L.Lanes, state: DeltaState | None, *, beta: jax.Array, log_decay: jax.Array):
        """query (scaled), key (unit) [B,T,H,K], value [B,T,H,V], beta, log_decay (<= 0) [B,T,H].

        Returns out [B,T,H,V] in the dtype of value, the memory and the segment of the last token.
        """
        batch, length, heads, _ = key.shape
        self.sow("intermediates", "inner", dict(query=query, key=key, value=value, beta=beta,
                                                log_decay=log_decay))
        memory, last = None, L.nothing_seen(batch)
        if state is not None:
            memory, last = state.memory, last.replace(segment=state.segment)
        _, starts, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        log_decay = sum((wide(bias.increment) for bias in lanes.bias), wide(log_decay))
        transport = lanes.transport
        if isinstance(transport, L.Diagonal):
            log_decay = channel_decay(log_decay, transport, query)
            transport = transport.rotation
        if isinstance(transport, endpoint.TRANSPORTS):
            token = pairs.path_of(transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                transport, self.site().rotary_dim)
        rows = dict(query=query, erase=key, beta=beta, log_decay=log_decay,
                    value=endpoint.turn_values(value, seq, lanes.value))
        if seq.segment is not None or state is not None:
            rows["start"] = jnp.broadcast_to(starts, (batch, length))
        path = isinstance(lanes.transport, L.Householder)
        if path:
            rows = _with_path(rows, lanes.transport)
            length = 2 * length
        size = length if self.form == QUADRATIC else self.chunk
        chunk = {} if size is None else dict(chunk=size)
        out, memory = linear_attention(
            rows.pop("query"), None, rows.pop("value"), state=memory, **rows, **chunk,
            form="recurrent" if self.form == STEP else "chunked")
        out = endpoint.turn_values(out[:, 1::2] if path else out, seq, lanes.value, sign=-1)
        self.sow("intermediates", "outer", out)
        return out, memory.astype(wide_dtype()), last.segment

    def empty_state(self, batch: int, value_dim: int, conv: ConvState) -> DeltaState:
        """The state before any token."""
        site, (_, carry) = self.site(), self.structure(batch)
        memory = jnp.zeros((batch, site.num_heads, site.key_dim, value_dim), wide_dtype())
        return DeltaState(memory, conv, L.nothing_seen(batch).segment, carry)


def _with_path(rows: dict, path: L.Householder) -> dict:
    """Each token as two: decay and I - beta w w^T, writing nothing; then the token's delta rule.

    Arrays [B,T,...] -> [B,2T,...]; the second of each two reads.
    """
    batch, length, heads, _ = rows["erase"].shape
    fits = lambda a: jnp.broadcast_to(pairs.repeat_heads(a, heads), (batch, length, heads,
                                                                     *a.shape[3:]))
    none = {name: jnp.zeros_like(a) for name, a in rows.items()}
    before, content = ("log_decay", "start"), ("query", "value")
    first = dict(rows, **{name: none[name] for name in content}, erase=fits(path.vector),
                 beta=fits(path.beta))
    second = dict(rows, **{name: none[name] for name in before if name in rows})

    def weave(a, b):
        return jnp.stack([a.astype(b.dtype), b], 2).reshape(batch, 2 * length, *b.shape[2:])

    return {name: weave(first[name], second[name]) for name in rows}
