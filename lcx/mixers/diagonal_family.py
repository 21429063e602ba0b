"""What an element-wise recurrence h_t = a_t * R_t h_{t-1} + u_t does with each lane.

There is no query and no key: a gate adds to log a_t, a rotation turns pairs of *values* by each
token's step before they decay (h_i = sum_j a_{j+1..i} R_{j-i} u_j where the gates of a pair are
tied, VO-RoPE), and a static bias weighs u_j by exp(bias), which needs all pairs of tokens.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.integral import Integral, fallen, integrate, separable_gap
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.ops import pairs
from lcx.ops.attention import cache
from lcx.ops.conv import ConvState
from lcx.ops.scan import diagonal_scan
from lcx.ops.scan.of_lanes import (
    ids_read,
    pair_of,
    rotation_of,
    static_biases,
    turn_of,
    turning,
)
from lcx.ops.scan.ring import RingState, init_ring, ring_scan
from lcx.ops.scan.turned import turned_scan
from lcx.types import wide, wide_dtype

_ALL = Support((QUADRATIC, CHUNKED, STEP))
_NO_RING = "R2 there is no distance from which its inputs need no ids of their own"
SUPPORTS = {
    L.Rotation: _ALL,
    L.ContentRotation: _ALL,
    L.ValueRotation: _ALL,
    L.Diagonal: _ALL,
    L.Separable: _ALL,
    L.EventuallyConstant: _ALL,
    L.Toeplitz: Support((QUADRATIC,), {
        CHUNKED: "unimplemented: FFT form", STEP: "R2 the kernel has no finite-rank state"}),
    L.Rowwise: Support((QUADRATIC,), {
        CHUNKED: "R2 the weight of an input changes with the reader",
        STEP: "R2 the kernel has no finite-rank state"}),
    L.Piecewise: _ALL,
    L.FeatureMap: refuses("R1", "there are no queries and keys to map"),
    L.ValueTable: refuses("R1", "there are no weights of pairs to sum by distance"),
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    L.Householder: refuses("R1", "channels never mix: there is no query-key product to transport"),
    L.Pairwise: refuses("R1", "there are no queries and keys for its kernel to read"),
    L.Temperature: refuses("R1", "there is no query-key product to scale"),
}
_AMPLITUDE = ("the rotation scales the query-key product (amplitude), and this mixer has none; "
              "choose a scheme without it")
_FORM = {"auto": None, QUADRATIC: None, CHUNKED: "chunked", STEP: "scan"}
_CHUNK = 64  # queries whose pairs are weighed at once


@struct.dataclass
class DiagonalState:
    """memory: h [B,H,K] wide; or a ring of near inputs where a pair of ids decides for a while; or
    a cache of inputs and gates where a bias weighs all pairs; conv: the
    inputs that a short convolution still reads; last: ids and segment; carry: the scheme's."""

    memory: jax.Array | RingState | cache.KeyCache
    conv: ConvState | None
    last: L.Last
    carry: Any


class DiagonalMixer(Mixer):
    """Shared by mixers whose core is an element-wise linear recurrence."""

    family = "diagonal"
    supports = SUPPORTS
    turns = False  # whether the mixer itself turns what it remembers

    def channel_site(self, channels: int | None) -> L.Site:
        """The site of `num_heads` groups of the recurrence's channels (width if None)."""
        channels = channels or self.width
        if channels % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide the {channels} channels of "
                              "the recurrence; set inner_width")
        dim = channels // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    def mix(self, log_decay: jax.Array, value: jax.Array, x: jax.Array, seq: L.Sequence,
            state: DiagonalState | None, shared: L.Lanes | None):
        """The core of a mixer without a convolution: gates and inputs [B,T,H,K] -> h [B,T,H,K] in
        the dtype of x, and the next state."""
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        step, starts, last = self.advance(seq, lanes, state, x.shape[0])
        out, memory = self.recur(log_decay, value, seq, lanes, step, starts,
                                 None if state is None else state.memory)
        if state is not None:
            state = state.replace(memory=memory, last=last, carry=carry)
        return out.astype(x.dtype), state

    def advance(self, seq: L.Sequence, lanes: L.Lanes, state: DiagonalState | None, batch: int):
        """Steps of the ids [1 or B,T,A], segment starts [1 or B,T], the last token."""
        last = L.nothing_seen(batch, lanes.axes) if state is None else state.last
        return L.advance(seq.replace(ids=ids_read(seq, lanes)), last)

    def recur(self, log_decay: jax.Array, value: jax.Array, seq: L.Sequence, lanes: L.Lanes,
              step: jax.Array, starts: jax.Array, memory: Any, own: jax.Array | None = None):
        """log_decay (<= 0), value [B,T,H,K] -> h [B,T,H,K] wide and the next memory (or None).

        own: radians [.,T,H,P] by which the mixer turns them, beside a `Piecewise` transport.
        """
        self.sow("intermediates", "inner", dict(log_decay=log_decay, value=value, lanes=lanes,
                                                own=own))
        if isinstance(lanes.transport, L.Diagonal):
            fade = wide(lanes.transport.increment)
            spare = value.shape[-1] - fade.shape[-1]
            log_decay = log_decay + jnp.pad(fade, [(0, 0)] * 3 + [(0, spare)])
        for bias in lanes.bias:
            if isinstance(bias, L.Separable):
                log_decay = log_decay + wide(bias.increment)[..., None]
        before, like, rotation = memory, lambda new, old: new.astype(old.dtype), turning(lanes)
        way, window = self.way(lanes, memory is not None)
        if way == "pairs":
            out, memory = _over_pairs(log_decay, value, seq, lanes, memory, self.chunk or _CHUNK)
        elif way == "ring":
            if memory is not None:
                window = memory.value.shape[1]
            out, memory = ring_scan(
                log_decay, value, ids_read(seq, lanes), pair_of(lanes), window or value.shape[1],
                rotation=turn_of(lanes, seq, step), own=own, start=starts, state=memory,
                form=_FORM[self.form])
        elif self.form == QUADRATIC and rotation is None:
            out, memory = diagonal_scan(log_decay, value, start=starts, state=before,
                                        form="quadratic")
        else:
            out, memory = turned_scan(
                log_decay, value, turn_of(lanes, seq, step), start=starts, state=before,
                interleaved=rotation is not None and rotation.interleaved, form=_FORM[self.form])
        memory = None if before is None else jax.tree.map(like, memory, before)
        self.sow("intermediates", "outer", out)
        return out, memory

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        if isinstance(lane, type):
            return super().support(lane, among)
        piecewise = isinstance(lane, L.Piecewise)
        rotation = lane.rotation if piecewise else rotation_of(lane)
        if getattr(rotation, "amplitude", None) is not None:
            return refuses("R1", _AMPLITUDE)
        if among is not None and lane is among.value and rotation is not None and (
                rotation_of(among.transport) or isinstance(among.transport, L.Piecewise)):
            return Support(reason="two rotations of one value: their angles would have to be added")
        if piecewise and lane.window is None:
            return Support((QUADRATIC,), {CHUNKED: _NO_RING, STEP: _NO_RING})
        return super().support(lane, among)

    def way(self, lanes: L.Lanes, streaming: bool) -> tuple[str, int | None]:
        """How these lanes are computed, and the tokens that must keep their ids (None: all).

        "scan": the recurrence; "ring": beside inputs that keep their ids; "pairs": weights of all
        pairs in closed form. Raises Refusal or Unimplemented where the form does not exist.
        """
        for lane in lanes.values():
            self.check_form(lane)
        static, pieces = static_biases(lanes), isinstance(lanes.transport, L.Piecewise)
        turns = self.turns or turning(lanes) is not None
        settles = [lane.window if isinstance(lane, (L.EventuallyConstant, L.Piecewise)) else None
                   for lane in (*static, *([lanes.transport] if pieces else []))]
        if not settles:
            unlike = self.form == QUADRATIC and turns and not streaming
            return ("ring" if unlike else "scan"), None
        bounded = self.form != QUADRATIC and None not in settles
        if not bounded and not turns:
            return "pairs", None
        return "ring", max(1, *settles) if bounded else None

    def empty_state(self, batch: int, max_length: int,
                    conv: ConvState | None = None) -> DiagonalState:
        """The state before any token: h, or a cache of `max_length` inputs (`over_pairs`)."""
        site, (lanes, carry) = self.site(), self.structure(batch)
        shape = (site.num_heads, site.key_dim)
        way, window = self.way(lanes, True)
        if way == "pairs":
            nothing = jnp.zeros((batch, 1, *shape), wide_dtype())
            keys = pairs.Keys(nothing[..., :0], nothing, L.sequence(1, 1),
                              pairs.Integrals(_integral(nothing)))
            memory = cache.init(keys, batch, max_length)
        elif way == "ring":
            angles = None
            if isinstance(lanes.transport, L.Piecewise):
                angles = lanes.transport.rotation.frequency.shape[-1]
            memory = init_ring(batch, window or max_length, *shape, angles, lanes.axes,
                               wide_dtype())
        else:
            memory = jnp.zeros((batch, *shape), wide_dtype())
        return DiagonalState(memory, conv, L.nothing_seen(batch, lanes.axes), carry)


def _over_pairs(log_decay, value, seq, lanes, memory, chunk):
    """h_i = sum_j exp(sum of log_decay over (j,i] + bias_ij) u_j, one chunk of i after another."""
    total = _integral(log_decay, None if memory is None else memory.total.bias)
    keys = pairs.Keys(value[..., :0], value, seq.replace(length=None), pairs.Integrals(total))
    if memory is not None:
        keys, _, memory = cache.append(memory, keys)
    static = static_biases(lanes)
    inputs = jnp.moveaxis(keys.value, 1, -1)[..., None, :]  # [B,H,K,1,S]
    batch, _, heads, size = value.shape

    def tile(tokens, first):
        seq, total = tokens
        queries = pairs.Queries(jnp.zeros((1, 1, heads, 0)), seq)
        allowed = pairs.mask(seq, keys.seq)
        bias = pairs.log_bias(queries, keys, static, allowed, 1.0)[:, :, None]  # [B,H,1,T,S]
        gap = fallen(separable_gap(total, keys.integral.bias))  # the future is masked
        gap = gap.reshape(batch, heads, size, *gap.shape[-2:])
        weights = jnp.where(allowed[:, None, None], jnp.exp(gap + bias), 0.0)
        return jnp.moveaxis(jnp.sum(weights * inputs, -1), -1, 1)

    return pairs.over_queries(tile, (seq.replace(length=None), total), chunk), memory


def _integral(log_decay: jax.Array, before: Integral | None = None) -> Integral:
    """Running sum [B,T,H*K] of gates [B,T,H,K]; a gate of -inf, which has none, is floored."""
    floor = math.log(jnp.finfo(log_decay.dtype).tiny)
    flat = log_decay.reshape(*log_decay.shape[:2], -1)
    return integrate(jnp.maximum(flat, floor), before)
