"""What linear attention does with each lane: a bias is a factor exp(bias) of a pair's weight.

Separable biases are decay and rotations are turned features, so both live in a state of fixed
size; what has no such state runs over pairs of tokens, with a cache of raw keys when streaming.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support
from lcx.mixers.linear_supports import APART, ENDLESS, FAR_SUPPORTS, SUPPORTS
from lcx.ops import endpoint, pairs
from lcx.ops.attention import cache
from lcx.ops.linear import linear_attention, quadratic, ring
from lcx.ops.linear import own as itself
from lcx.ops.linear.decay import floored
from lcx.ops.linear.tree import toeplitz_attention
from lcx.types import wide, wide_dtype

_CHUNK = 64  # tokens at once beside a ring (if it holds no more), or whose pairs are weighed
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


@struct.dataclass
class RingState:
    """The newest tokens beside a memory of older ones, and what the scheme remembers."""

    ring: ring.Ring
    carry: Any


class LinearMixer(Mixer):
    """Shared by mixers whose core is o_i = sum_{j<=i} <q_i, T_{i:j} k_j> exp(decay + bias) v_j."""

    family = "linear"
    supports = {**SUPPORTS, **FAR_SUPPORTS}
    gate_rank: ClassVar[int] = 3  # axes of its own gates: one for each head
    read_first: ClassVar[bool] = False  # a token reads before its own gates and write

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array, seq: L.Sequence,
            lanes: L.Lanes, carry: Any, state: MemoryState | KeysState | None, *,
            log_decay: jax.Array | None = None, normaliser: str | None = None,
            own: jax.Array | None = None):
        """Features query [B,T,H,K], key [B,T,N,K], value [B,T,N or H,V] -> [B,T,H,V], next state.

        log_decay (<= 0): the mixer's own gate of each token, excluded from that token's own
        weight; broadcastable to [B,T,H], in the vector family to [B,T,H,K]. normaliser: "sum"
        divides by the sum of the weights, taken without transport (which may turn a weight
        negative); None does not divide. own: the product [B,T,H] of a token with itself, where that
        is not query times key (None: it is; [B,T,H,R]: `own.products`); not beside a normaliser.
        """
        if normaliser not in ("sum", None) or normaliser and own is not None:
            raise ConfigError(f"normaliser={normaliser!r}: choose 'sum' or None, and None with own")
        eps = EPS if normaliser else None
        if log_decay is not None:
            log_decay = jnp.broadcast_to(wide(log_decay), query.shape[: self.gate_rank])
        self.sow("intermediates", "inner", dict(
            query=query, key=key, value=value, log_decay=log_decay, normaliser=eps, own=own,
            read_first=self.read_first, lanes=lanes))
        run = self._way(lanes, state)
        out, state = run(query, key, value, seq, lanes, carry, state, log_decay, eps, own)
        out = out.astype(value.dtype)
        self.sow("intermediates", "outer", out)
        return out, state

    def _way(self, lanes: L.Lanes, state: Any) -> Callable:
        """The method that computes these lanes."""
        if self.over_pairs(lanes):
            tree = self.form == CHUNKED and state is None
            return self._over_tree if tree else self._over_pairs
        return self._over_memory if ring.reach(lanes) is None else self._over_ring

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        found = super().support(lane, among)
        static = isinstance(lane, (L.Piecewise, L.Toeplitz)) and CHUNKED in found.forms
        if isinstance(lane, L.Piecewise) and static and lane.window is None:
            return Support((QUADRATIC,), {CHUNKED: ENDLESS, STEP: ENDLESS})
        if static and among is not None and not cls.factors(among.transport, lane):
            step = found.missing.get(STEP, APART)
            return Support((QUADRATIC,), {CHUNKED: APART, STEP: step})
        return found

    @classmethod
    def factors(cls, transport: Any, lane: Any) -> bool:
        """Whether a transport is a map of the query and one of the key, as `lane` wants it."""
        near = isinstance(transport, L.Piecewise) and isinstance(
            lane, (L.Piecewise, L.EventuallyConstant))
        return near or not isinstance(transport, (L.Householder, L.Piecewise))

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """Whether these lanes, in this form, need the weights of all pairs.

        Raises Refusal or Unimplemented where the form that was asked for does not exist.
        """
        missing = [self.check_form(lane, lanes) for lane in lanes.values()]
        return self.form == QUADRATIC or any(STEP in forms for forms in missing)

    def _endpoints(self, query, key, seq, transport):
        """Query and key, each mapped by its own token's place."""
        token = pairs.path_of(transport)
        return endpoint.mapped(pairs.Queries(query, seq, path=token),
                               pairs.Keys(key, key, seq, path=token), transport,
                               self.site().rotary_dim)

    def _over_memory(self, query, key, value, seq, lanes, carry, state, log_decay, eps, own=None):
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
        transport, *turned = endpoint.in_basis(lanes.transport, query, key)
        path = {}
        if isinstance(transport, L.Diagonal):
            options["log_decay"] = channel_decay(options.get("log_decay"), transport, query)
            transport = transport.rotation
        match transport:
            case L.Rotation() | L.ContentRotation() | L.FeatureMap():
                # equal to a rotation of the state: channels of a pair decay alike
                turned = self._endpoints(*turned, seq, transport)
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
        out = itself.corrected(out, own, query, key, value, lanes, self.read_first)
        if state is not None:
            like = lambda new, old: jax.tree.map(lambda n, o: n.astype(o.dtype), new, old)
            state = MemoryState(like(memory, state.memory), like(total, state.total),
                                last.segment, carry)
        return out, state

    def _over_pairs(self, query, key, value, seq, lanes, carry, state, log_decay, eps, own=None):
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
        total = self._read_at(total, log_decay)
        out = quadratic.attend(pairs.Queries(query, seq, total, path, extras, slot, own), keys,
                               lanes, rotary_dim=self.site().rotary_dim, eps=eps,
                               chunk=self.chunk)
        return out, state

    def _read_at(self, total: pairs.Integrals, log_decay) -> pairs.Integrals:
        """The integrals of the gates up to where a token's query reads."""
        return total

    def _over_ring(self, query, key, value, seq, lanes, carry, state, log_decay, eps, own=None):
        """Near pairs one by one, far ones from a memory of what left the ring."""
        if log_decay is not None:
            lanes = self._gated(lanes, log_decay)
        transport, query, key = endpoint.in_basis(lanes.transport, query, key)
        lanes, path = lanes.replace(transport=transport), pairs.path_of(transport)
        total = pairs.integrals(lanes, None if state is None else state.ring.keys.total)
        keys = pairs.Keys(key, value, seq.replace(length=None), total, path)
        site, batch = self.site(), query.shape[0]
        window = ring.reach(lanes)
        if state is None:
            dim = endpoint.mapped_dim(lanes.transport, site) + query.shape[-1] - site.key_dim
            like = jax.tree.map(lambda a: a[:, :1], keys)
            before = ring.init(like, query.shape[2], dim, batch, window, eps is not None)
        else:
            before = state.ring
        queries = pairs.Queries(query, seq, self._read_at(total, log_decay), path, own=own)
        out, after = ring.attend(queries, keys, before, lanes, rotary_dim=site.rotary_dim, eps=eps,
                                 chunk=self.chunk or max(_CHUNK, window))
        return out, None if state is None else RingState(after, carry)

    def _over_tree(self, query, key, value, seq, lanes, carry, state, log_decay, eps, own=None):
        """Static kernels of the distance by FFT, for ids that count tokens."""
        batch, length, heads, _ = query.shape
        if log_decay is not None:
            lanes = self._gated(lanes, log_decay)
        ids, starts, _ = L.advance(seq.replace(ids=seq.ids[..., :1]), L.nothing_seen(batch))
        counts = jnp.all((ids[..., 0] == 1) | starts, axis=1)[:, None, None, None]
        distance = jnp.arange(length, dtype=wide_dtype())
        static = [wide(bias.kernel(bias.params, distance)) for bias in lanes.bias
                  if isinstance(bias, L.Toeplitz)]
        gates = [wide(bias.increment) for bias in lanes.bias if isinstance(bias, L.Separable)]
        gates = jnp.broadcast_to(sum(gates), (batch, length, heads)) if gates else None
        run = lambda query, key, value, gates: self._halves(
            query, pairs.repeat_heads(key, heads), pairs.repeat_heads(value, heads),
            jnp.exp(sum(static)), gates, starts, log_decay)
        transport, *turned = endpoint.in_basis(lanes.transport, query, key)
        channels = gates
        if isinstance(transport, L.Diagonal):
            channels = channel_decay(gates, transport, query)
            transport = transport.rotation
        if transport is not None:
            turned = self._endpoints(*turned, seq, transport)
        out = run(*turned, endpoint.turn_values(value, seq, lanes.value), channels)
        out = endpoint.turn_values(out, seq, lanes.value, sign=-1)
        if eps is not None:
            out = out / (run(query, key, jnp.ones_like(value[..., :1]), gates) + eps)
        out = itself.corrected(out, own, query, key, value, lanes, self.read_first)
        return jnp.where(counts, out, jnp.nan), None

    def _halves(self, query, key, value, kernel, gates, starts, log_decay) -> jax.Array:
        """The op of `_over_tree`; gates: the scheme's and the mixer's own together."""
        return toeplitz_attention(query, key, value, kernel, log_decay=gates, start=starts,
                                  block=self.chunk or _CHUNK)

    def _gated(self, lanes: L.Lanes, log_decay) -> L.Lanes:
        """The mixer's own gate, which need not be an array yet, as one more separable bias."""
        if isinstance(log_decay, jax.Array):
            log_decay = floored(log_decay)
        return lanes.replace(bias=(*lanes.bias, L.Separable(log_decay)))

    def empty_state(self, batch: int, max_length: int, value_heads: int, value_dim: int, dtype, *,
                    log_decay: Any = False, normaliser: str | None = None,
                    key_dim: int | None = None):
        """A memory where the scheme's lanes allow one, else a cache of `max_length` raw keys.

        value_heads: heads of `mix`'s value; log_decay: whether `mix` is given one, or its shape;
        key_dim: channels of `mix`'s key, the site's if None.
        """
        site = self.site()
        lanes, carry = self.structure(batch)
        window, over_pairs = ring.reach(lanes), self.over_pairs(lanes)
        if not over_pairs and window is None:
            shape = (batch, site.num_heads)
            dim = endpoint.mapped_dim(lanes.transport, site)
            total = jnp.zeros((*shape, site.key_dim, 1), wide_dtype()) if normaliser else None
            return MemoryState(jnp.zeros((*shape, dim, value_dim), wide_dtype()), total,
                               L.nothing_seen(batch).segment, carry)
        if log_decay:
            gate = jax.ShapeDtypeStruct((1, 1, site.num_heads), wide_dtype())
            lanes = self._gated(lanes, gate if log_decay is True else log_decay)
        like = cache.like(lanes, batch, site.num_kv_heads, key_dim or site.key_dim, value_dim,
                          dtype, value_heads)
        if not over_pairs:
            dim = endpoint.mapped_dim(lanes.transport, site)
            return RingState(ring.init(like, site.num_heads, dim, batch, window,
                                       normaliser is not None), carry)
        return KeysState(cache.init(like, batch, max_length), carry)


def channel_decay(log_decay: jax.Array | None, transport: L.Diagonal, query: jax.Array):
    """Log gates [B,T,H,K] of a state: per head [B,T,H] (or None) plus a diagonal transport."""
    heads, dim = query.shape[2:]
    increment = pairs.repeat_heads(wide(transport.increment), heads)
    increment = jnp.pad(increment, [(0, 0)] * 3 + [(0, dim - increment.shape[-1])])
    increment = increment if log_decay is None else increment + log_decay[..., None]
    return jnp.broadcast_to(increment, query.shape)
