"""RWKV-4: an average of values, each channel with its own decay and weights e^k."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, Whole, in_depth
from lcx.errors import ConfigError
from lcx.integral import Integral, fallen, integrate, separable_gap
from lcx.layers import Dense, token_before
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.ops import conv, pairs
from lcx.ops.attention import cache
from lcx.ops.scan.of_lanes import static_biases
from lcx.ops.scan.wkv import WkvState, init_wkv, wkv, wkv_pairs
from lcx.types import wide, wide_dtype
from lcx.weights import free

_ALL = Support((QUADRATIC, CHUNKED, STEP))
_TURN = refuses("R9", "each channel's exponentials are held at a scale of their own, which a "
                "rotation of channel pairs would mix")
_RING = "unimplemented: ring buffer of near values beside a delayed average"
_RANK = "R2 the kernel has no finite-rank state"
_FORM = {"auto": None, CHUNKED: "chunked", STEP: "scan"}
_CHUNK = 64  # readers whose pairs are weighed at once


@struct.dataclass
class Rwkv4State:
    """memory: the sums, or a cache of keys and values where a bias weighs pairs; conv: the token
    before; segment [B] of the last token; what the scheme remembers."""

    memory: WkvState | cache.KeyCache
    conv: conv.ConvState
    segment: jax.Array
    carry: Any


class Rwkv4(Mixer):
    """The time mixing of RWKV-4 (arXiv:2305.13048): [B,T,D] -> [B,T,D].

    k, v, r are maps of x blended with the token before by their own mu: mu x + (1 - mu) x'.
    o_t = (sum_{j<t} e^(-(t-1-j) w + k_j) v_j + e^(u + k_t) v_t) / (the same without v), w = e^decay
    and u by channel; the layer returns W_o (sigmoid(r) o). A scheme's biases multiply the weights
    of numerator and denominator alike, its gates add to -w.

    layer and num_layers: which layer it is, from 0, read by the published initial values only:
    decay -5 + 8 (c/(D-1))^(0.7 + 1.3 l/(L-1)), u = log 0.3 + ((c+1) mod 3 - 1)/2; W_k, W_r and W_o
    at zero, W_v orthogonal. decay, u and mu are "decay_bias", "bonus_bias" and "blend_scale".
    num_heads: groups of channels that share a bias of the scheme.
    """

    num_heads: Count = 4
    layer: Whole = 0
    num_layers: Count = 1

    family: ClassVar[str] = "wkv"
    paper: ClassVar[str] = "arXiv:2305.13048"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, layer=2, num_layers=3))
    supports = {
        L.Separable: _ALL,
        L.Diagonal: _ALL,
        L.EventuallyConstant: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
        L.Toeplitz: Support((QUADRATIC,), {CHUNKED: "unimplemented: FFT form", STEP: _RANK}),
        L.Rowwise: Support((QUADRATIC,), {
            CHUNKED: "R2 the weight of an input changes with the reader", STEP: _RANK}),
        L.ValueTable: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
        L.Temperature: Support((QUADRATIC, CHUNKED, STEP), code="R4", reason=(
            "a factor of a whole row cancels in the normaliser")),
        **dict.fromkeys((L.Rotation, L.ContentRotation, L.ValueRotation, L.Piecewise), _TURN),
        L.Householder: refuses("R1", "channels never mix: there is no product to transport"),
        L.FeatureMap: refuses("R1", "there are no queries and keys to map"),
        L.Pairwise: refuses("R1", "there are no queries and keys for its kernel to read"),
        L.LogitMap: refuses("R11", "an operator on the logits of a row has one row of them here "
                            "for each channel"),
    }

    def site(self) -> L.Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        dim = self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        if isinstance(lane, L.Diagonal) and lane.rotation is not None:
            return _TURN
        return super().support(lane, among)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Rwkv4State | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        batch, shape = x.shape[0], (self.num_heads, self.site().key_dim)
        before, tail = token_before(x, seq, None if state is None else state.conv)
        blend = wide(self.param("blend_scale", free(
            self._blend, (None, "width")), (3, self.width)))
        moved = lambda mu: (mu * x + (1 - mu) * before).astype(x.dtype)
        into = lambda name, n, init: Dense(shape, ("heads", "head_dim"), init=init, name=name)(
            moved(blend[n]))
        zeros = nn.initializers.zeros_init()
        key, value = into("key", 0, zeros), into("value", 1, self._orthogonal)
        gate = nn.sigmoid(into("receptance", 2, zeros))
        vector = lambda name, init: wide(self.param(name, free(
            init, ("heads", "head_dim")), shape))
        rate, bonus = jnp.exp(vector("decay_bias", self._decay)), vector("bonus_bias", self._bonus)

        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", dict(key=key, value=value, rate=rate, bonus=bonus))
        last = L.nothing_seen(batch)
        last = last if state is None else last.replace(segment=state.segment)
        _, starts, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        memory, fade = None if state is None else state.memory, _fade(lanes, shape)
        if self.over_pairs(lanes):
            out, memory = self._over_pairs(key, value, rate, bonus, fade, seq, lanes, memory)
        else:
            out, memory = wkv(key, value, rate, bonus, fade, start=starts, state=memory,
                              form=_FORM[self.form])
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), init=zeros, name="out")(
            gate * out.astype(x.dtype))
        return out, None if state is None else Rwkv4State(memory, tail, last.segment, carry)

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """Whether these lanes, in this form, need the weights of all pairs."""
        missing = [self.check_form(lane) for lane in lanes.values()]
        return self.form == QUADRATIC or any(STEP in forms for forms in missing)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Rwkv4State:
        (lanes, carry), shape = self.structure(batch), (self.num_heads, self.site().key_dim)
        if self.over_pairs(lanes):
            nothing = jnp.zeros((batch, 1, *shape), dtype)
            total = _integral(jnp.zeros((batch, 1, *shape), wide_dtype()))
            memory = cache.init(pairs.Keys(nothing, nothing, L.sequence(1, 1),
                                           pairs.Integrals(total)), batch, max_length)
        else:
            memory = init_wkv(batch, *shape)
        return Rwkv4State(memory, conv.init_state(batch, 2, self.width, dtype),
                          L.nothing_seen(batch).segment, carry)

    def _over_pairs(self, key, value, rate, bonus, fade, seq, lanes, memory):
        log_gate = jnp.broadcast_to(fade - rate, key.shape)
        total = _integral(log_gate, None if memory is None else memory.total.bias)
        keys = pairs.Keys(key, value, seq.replace(length=None), pairs.Integrals(total))
        if memory is not None:
            keys, _, memory = cache.append(memory, keys)
        static, shape = static_biases(lanes), key.shape[2:]

        def tile(tokens, first):
            seq, total = tokens
            allowed = pairs.mask(seq, keys.seq)
            own = seq.order[..., :, None] == keys.seq.order[..., None, :]
            gap = fallen(separable_gap(total, keys.integral.bias))
            log = gap.reshape(gap.shape[0], *shape, *gap.shape[-2:])
            queries = pairs.Queries(jnp.zeros((1, 1, shape[0], 0)), seq)
            bias = pairs.log_bias(queries, keys, static, allowed, 1.0)
            log = log if bias is None else log + bias[:, :, None]
            content = keys.value
            if isinstance(lanes.value, L.ValueTable):
                table, distance = lanes.value.table, pairs.pair_distance(seq, keys.seq)
                rows = lanes.value.bucket(table.shape[0], distance).astype(jnp.int32)
                content = wide(content)[:, None] + wide(table)[rows][:, :, :, None]
            return wkv_pairs(keys.key, content, log, rate, bonus, allowed, own)

        tokens = (seq.replace(length=None), total)
        return pairs.over_queries(tile, tokens, self.chunk or _CHUNK), memory

    def _ramps(self) -> tuple[np.ndarray, float, float]:
        """Channels from 0 to 1, how deep the layer lies, and how much lies above it."""
        place = np.arange(self.width) / max(1, self.width - 1)
        below = in_depth(self.layer, self.num_layers)
        return place, self.layer / max(1, self.num_layers - 1), 1 - below

    def _blend(self, key, shape, dtype=jnp.float32):
        _, depth, left = self._ramps()
        share = np.arange(self.width) / self.width
        rows = share**left, share**left + 0.3 * depth, share ** (0.5 * left)
        return jnp.asarray(np.stack(rows), dtype)

    def _decay(self, key, shape, dtype=jnp.float32):
        place, depth, _ = self._ramps()
        return jnp.asarray(-5 + 8 * place ** (0.7 + 1.3 * depth), dtype).reshape(shape)

    def _bonus(self, key, shape, dtype=jnp.float32):
        zigzag = (np.arange(self.width) + 1) % 3 - 1
        return jnp.asarray(math.log(0.3) + 0.5 * zigzag, dtype).reshape(shape)

    def _orthogonal(self, key, shape, dtype=jnp.float32):
        return nn.initializers.orthogonal()(key, (self.width, self.width), dtype).reshape(shape)


def _fade(lanes: L.Lanes, shape: tuple[int, int]) -> jax.Array:
    """Log gates of the scheme [.,T,H,K]."""
    fade = jnp.zeros((1, 1, *shape), wide_dtype())
    for bias in lanes.bias:
        if isinstance(bias, L.Separable):
            fade = fade + wide(bias.increment)[..., None]
    if isinstance(lanes.transport, L.Diagonal):
        inside = wide(lanes.transport.increment)
        fade = fade + jnp.pad(inside, [(0, 0)] * 3 + [(0, shape[1] - inside.shape[-1])])
    return fade


def _integral(log_gate: jax.Array, before: Integral | None = None) -> Integral:
    """Running sum [B,T,H*K] of gates [B,T,H,K]."""
    return integrate(log_gate.reshape(*log_gate.shape[:2], -1), before)
