"""What linear attention does with each lane: a bias is a factor exp(bias) of a pair's weight.

Separable biases are decay and rotations are turned features, so both live in a state of fixed
size; what has no such state runs over pairs of tokens, with a cache of raw keys when streaming.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.ops import endpoint, pairs
from lcx.ops.attention import cache
from lcx.ops.linear import linear_attention, quadratic
from lcx.types import wide, wide_dtype

_ALL = Support((QUADRATIC, CHUNKED, STEP))
_RING = "unimplemented: ring buffer of near keys beside a delayed state"
_BUCKETS = "unimplemented: a sum of keys per bucket of distances, in a ring buffer"
_RANK = "R2 the kernel has no finite-rank state"
_PAIRS = Support((QUADRATIC,), {CHUNKED: "R2 a pair's weight does not factor", STEP: _RANK})
SUPPORTS = {
    L.Rotation: _ALL,
    L.ContentRotation: _ALL,
    L.Diagonal: _ALL,
    L.FeatureMap: _ALL,
    L.Householder: _ALL,
    L.Piecewise: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
    L.Separable: _ALL,
    L.EventuallyConstant: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
    L.Toeplitz: Support((QUADRATIC,), {CHUNKED: "unimplemented: FFT form", STEP: _RANK}),
    L.Rowwise: _PAIRS,
    L.Pairwise: _PAIRS,
    L.ValueRotation: _ALL,
    L.ValueTable: Support((QUADRATIC,), {CHUNKED: _BUCKETS, STEP: _BUCKETS}),
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    L.Temperature: Support((QUADRATIC, CHUNKED, STEP), code="R4", reason=(
        "a factor of a whole row cancels in the normaliser or the scale-free output norm")),
}
EPS = 1e-6  # beside the sum of weights (arXiv:2006.16236)


@struct.dataclass
class MemoryState:
    """Memory [B,H,K,V] and sum of keys [B,H,K,1] or None, both wide; segment [B] of the last token;
    what the scheme remembers; ids [B,A] of the last token where the memory itself turns."""

    memory: jax.Array
    total: jax.Array | None
    segment: jax.Array
    carry: Any
    ids: jax.Array | None = None


@struct.dataclass
class KeysState:
    """Raw keys of the stream, and what the scheme remembers."""

    cache: cache.KeyCache
    carry: Any


class LinearMixer(Mixer):
    """Shared by mixers whose core is o_i = sum_{j<=i} <q_i, T_{i:j} k_j> exp(decay + bias) v_j."""

    family = "linear"
    supports = SUPPORTS
    gate_rank: ClassVar[int] = 3  # axes of its own gates: one for each head

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array, seq: L.Sequence,
            lanes: L.Lanes, carry: Any, state: MemoryState | KeysState | None, *,
            log_decay: jax.Array | None = None, normaliser: str | None = None):
        """Features query [B,T,H,K], key [B,T,N,K], value [B,T,N or H,V] -> [B,T,H,V], next state.

        log_decay (<= 0): the mixer's own gate of each token, excluded from that token's own
        weight; broadcastable to [B,T,H], in the vector family to [B,T,H,K]. normaliser: "sum"
        divides by the sum of the weights, taken without transport (which may turn a weight
        negative); None does not divide.
        """
        if normaliser not in ("sum", None):
            raise ConfigError(f"normaliser={normaliser!r}: choose 'sum' or None")
        eps = EPS if normaliser else None
        if log_decay is not None:
            log_decay = jnp.broadcast_to(wide(log_decay), query.shape[: self.gate_rank])
        self.sow("intermediates", "inner", dict(query=query, key=key, value=value,
                                          log_decay=log_decay, normaliser=eps))
        run = self._over_pairs if self.over_pairs(lanes) else self._over_memory
        out, state = run(query, key, value, seq, lanes, carry, state, log_decay, eps)
        out = out.astype(value.dtype)
        self.sow("intermediates", "outer", out)
        return out, state

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """Whether these lanes, in this form, need the weights of all pairs.

        Raises Refusal or Unimplemented where the form that was asked for does not exist.
        """
        for lane in lanes.values():
            missing = self.check_form(lane)
            if STEP in missing:
                return True
        return self.form == QUADRATIC

    def _over_memory(self, query, key, value, seq, lanes, carry, state, log_decay, eps):
        """A state of fixed size: chunked, or token by token."""
        heads, batch = query.shape[2], query.shape[0]
        gates = [bias.increment for bias in lanes.bias]
        gates += [] if log_decay is None else [log_decay]
        options = dict(form="recurrent" if self.form == STEP else "chunked")
        if self.chunk is not None:
            options["chunk"] = self.chunk
        if gates:
            options["log_decay"] = jnp.broadcast_to(sum(map(wide, gates)), query.shape[:3])
        if seq.segment is not None or state is not None:
            last = L.nothing_seen(batch)
            last = last if state is None else last.replace(segment=state.segment)
            only_segments = seq.replace(ids=seq.ids[..., :1])
            _, options["start"], last = L.advance(only_segments, last)
        repeated = lambda a: pairs.repeat_heads(a, heads)
        before = (None, None) if state is None else (state.memory, state.total)
        plain = dict(options)  # for the normaliser, whose weights have no transport
        turned, path, transport = (query, key), {}, lanes.transport
        if isinstance(transport, L.Diagonal):
            options["log_decay"] = channel_decay(options.get("log_decay"), transport, query)
            transport = transport.rotation
        match transport:
            case L.Rotation() | L.ContentRotation() | L.FeatureMap():
                # equal to a rotation of the state: channels of a pair decay alike
                token = pairs.path_of(transport)
                turned = endpoint.mapped(
                    pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                    transport, self.site().rotary_dim)
            case L.Householder(vector, beta):
                fits = lambda a: jnp.broadcast_to(repeated(a), (batch, *repeated(a).shape[1:]))
                path = dict(erase=fits(vector), beta=fits(beta))
        content = repeated(endpoint.turn_values(value, seq, lanes.value))
        out, memory = linear_attention(turned[0], repeated(turned[1]), content, state=before[0],
                                       **options, **path)
        out = endpoint.turn_values(out, seq, lanes.value, sign=-1)
        total = None
        if eps is not None:
            ones = jnp.ones((*query.shape[:3], 1), value.dtype)
            sums, total = linear_attention(query, repeated(key), ones, state=before[1], **plain)
            out = wide(out) / (wide(sums) + eps)
        if state is not None:
            like = lambda new, old: jax.tree.map(lambda n, o: n.astype(o.dtype), new, old)
            state = MemoryState(like(memory, state.memory), like(total, state.total),
                                last.segment, carry)
        return out, state

    def _over_pairs(self, query, key, value, seq, lanes, carry, state, log_decay, eps):
        """Weights of all pairs, with a cache of raw keys."""
        if log_decay is not None:
            lanes = self._gated(lanes, log_decay)
        path = pairs.path_of(lanes.transport)
        total = pairs.integrals(lanes, None if state is None else state.cache.total)
        extras = pairs.extras_of(lanes)
        keys, slot = pairs.Keys(key, value, seq.replace(length=None), total, path, extras), 0
        if state is not None:
            keys, slot, kept = cache.append(state.cache, keys)
            state = KeysState(kept, carry)
        out = quadratic.attend(pairs.Queries(query, seq, total, path, extras, slot), keys, lanes,
                               rotary_dim=self.site().rotary_dim, eps=eps,
                               chunk=self.chunk)
        return out, state

    def _gated(self, lanes: L.Lanes, log_decay) -> L.Lanes:
        """The mixer's own gate, which need not be an array yet, as one more separable bias."""
        if isinstance(log_decay, jax.Array):  # the floor of ops.linear: -inf has no integral
            log_decay = jnp.maximum(log_decay, math.log(jnp.finfo(log_decay.dtype).tiny))
        return lanes.replace(bias=(*lanes.bias, L.Separable(log_decay)))

    def empty_state(self, batch: int, max_length: int, value_heads: int, value_dim: int, dtype, *,
                    log_decay: Any = False, normaliser: str | None = None):
        """A memory where the scheme's lanes allow one, else a cache of `max_length` raw keys.

        value_heads: heads of `mix`'s value; log_decay: whether `mix` is given one, or its shape.
        """
        site = self.site()
        lanes, carry = self.structure(batch)
        if not self.over_pairs(lanes):
            shape = (batch, site.num_heads)
            dim = endpoint.mapped_dim(lanes.transport, site)
            total = jnp.zeros((*shape, site.key_dim, 1), wide_dtype()) if normaliser else None
            return MemoryState(jnp.zeros((*shape, dim, value_dim), wide_dtype()), total,
                               L.nothing_seen(batch).segment, carry)
        if log_decay:
            gate = jax.ShapeDtypeStruct((1, 1, site.num_heads), wide_dtype())
            lanes = self._gated(lanes, gate if log_decay is True else log_decay)
        like = cache.like(lanes, batch, site.num_kv_heads, site.key_dim, value_dim, dtype,
                          value_heads)
        return KeysState(cache.init(like, batch, max_length), carry)


def channel_decay(log_decay: jax.Array | None, transport: L.Diagonal, query: jax.Array):
    """Log gates [B,T,H,K] of a state: per head [B,T,H] (or None) plus a diagonal transport."""
    heads, dim = query.shape[2:]
    increment = pairs.repeat_heads(wide(transport.increment), heads)
    increment = jnp.pad(increment, [(0, 0)] * 3 + [(0, dim - increment.shape[-1])])
    increment = increment if log_decay is None else increment + log_decay[..., None]
    return jnp.broadcast_to(increment, query.shape)
