"""What an element-wise recurrence h_t = a_t * R_t h_{t-1} + u_t does with each lane.

There is no query and no key: a gate adds to log a_t, a rotation turns pairs of *values* by each
token's step before they decay (h_i = sum_j a_{j+1..i} R_{j-i} u_j where the gates of a pair are
tied, VO-RoPE), and a static bias weighs u_j by exp(bias), which needs all pairs of tokens.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.integral import Integral, integrate, separable_gap
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.ops import pairs
from lcx.ops.attention import cache
from lcx.ops.conv import ConvState
from lcx.ops.scan import diagonal_scan
from lcx.types import wide, wide_dtype

_RING = "unimplemented: ring buffer of near inputs beside a delayed state"
_UNTIED = ("R10 the gates of a channel pair differ, so that a pair's weight is a product of 2 x 2 "
           "matrices without a closed form")
_TURNS = Support((CHUNKED, STEP), {QUADRATIC: _UNTIED})
SUPPORTS = {
    L.Rotation: _TURNS,
    L.ContentRotation: _TURNS,
    L.ValueRotation: _TURNS,
    L.Diagonal: Support((QUADRATIC, CHUNKED, STEP)),
    L.Separable: Support((QUADRATIC, CHUNKED, STEP)),
    L.EventuallyConstant: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
    L.Toeplitz: Support((QUADRATIC,), {
        CHUNKED: "unimplemented: FFT form", STEP: "R2 the kernel has no finite-rank state"}),
    L.Rowwise: Support((QUADRATIC,), {
        CHUNKED: "R2 the weight of an input changes with the reader",
        STEP: "R2 the kernel has no finite-rank state"}),
    L.FeatureMap: refuses("R1", "there are no queries and keys to map"),
    L.ValueTable: refuses("R1", "there are no weights of pairs to sum by distance"),
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    L.Householder: refuses("R1", "channels never mix: there is no query-key product to transport"),
    L.Pairwise: refuses("R1", "there are no queries and keys for its kernel to read"),
    L.Temperature: refuses("R1", "there is no query-key product to scale"),
    L.Piecewise: Support(reason="value pairs with untied gates turn between decays, so that near "
                         "and far ids need a ring buffer of inputs beside a delayed state"),
}
_AMPLITUDE = ("the rotation scales the query-key product (amplitude), and this mixer has none; "
              "choose a scheme without it")
_FORM = {"auto": None, QUADRATIC: "quadratic", CHUNKED: "chunked", STEP: "scan"}
_CHUNK = 64  # queries whose pairs are weighed at once


@struct.dataclass
class DiagonalState:
    """memory: h [B,H,K] wide, or a cache of inputs and gates where a bias weighs pairs; conv: the
    inputs that a short convolution still reads; last: ids and segment; carry: the scheme's."""

    memory: jax.Array | cache.KeyCache
    conv: ConvState | None
    last: L.Last
    carry: Any


class DiagonalMixer(Mixer):
    """Shared by mixers whose core is an element-wise linear recurrence."""

    family = "diagonal"
    supports = SUPPORTS

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
        axes = lanes.axes
        ids = seq.ids[..., :axes]
        ids = jnp.broadcast_to(ids, (*ids.shape[:-1], axes))
        last = L.nothing_seen(batch, axes) if state is None else state.last
        return L.advance(seq.replace(ids=ids), last)

    def recur(self, log_decay: jax.Array, value: jax.Array, seq: L.Sequence, lanes: L.Lanes,
              step: jax.Array, starts: jax.Array, memory: Any):
        """log_decay (<= 0), value [B,T,H,K] -> h [B,T,H,K] wide and the next memory (or None)."""
        self.sow("intermediates", "inner", dict(log_decay=log_decay, value=value))
        if isinstance(lanes.transport, L.Diagonal):
            fade = wide(lanes.transport.increment)
            spare = value.shape[-1] - fade.shape[-1]
            log_decay = log_decay + jnp.pad(fade, [(0, 0)] * 3 + [(0, spare)])
        for bias in lanes.bias:
            if isinstance(bias, L.Separable):
                log_decay = log_decay + wide(bias.increment)[..., None]
        if self.over_pairs(lanes):
            out, memory = _over_pairs(log_decay, value, seq, lanes, memory, self.chunk or _CHUNK)
        else:
            before = memory
            out, memory = self._scan(log_decay, value, _turning(lanes), step, starts, before)
            memory = None if before is None else memory.astype(before.dtype)
        self.sow("intermediates", "outer", out)
        return out, memory

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        turning = None if isinstance(lane, type) else _rotation(lane)
        if turning is None:
            return super().support(lane, among)
        if getattr(turning, "amplitude", None) is not None:
            return refuses("R1", _AMPLITUDE)
        if among is not None and _weighs_pairs(among):
            return Support(reason="beside a bias that weighs pairs, a turned input would have to "
                                  "be kept for every past token")
        if among is not None and lane is among.value and _rotation(among.transport) is not None:
            return Support(reason="two rotations of one value: their angles would have to be added")
        return _TURNS  # a Diagonal with a rotation too

    def over_pairs(self, lanes: L.Lanes) -> bool:
        """Whether these lanes need the weights of all pairs, and so a cache of inputs.

        Raises Refusal or Unimplemented where the form that was asked for does not exist.
        """
        for lane in lanes.values():
            self.check_form(lane)
        return _weighs_pairs(lanes)

    def _scan(self, log_decay, value, rotation, step, starts, before):
        """The recurrence itself; the rotated channels and the rest run beside each other."""
        run = functools.partial(diagonal_scan, start=starts, form=_FORM[self.form])
        if rotation is None:
            return run(log_decay, value, state=before)
        if isinstance(rotation, L.ContentRotation):
            angle = -wide(rotation.step)
        else:
            angle = -L.phase(rotation, step)[:, :, None]
        width = 2 * angle.shape[-1]
        if width > value.shape[-1]:
            raise ValueError(f"the rotation turns {width} channels, the mixer offers "
                             f"{value.shape[-1]}")
        # A query at i would see u_j turned back by id_i - id_j, hence the sign.
        angle = jnp.broadcast_to(angle, (*value.shape[:-1], width // 2))
        halves = _halves if rotation.interleaved else lambda x: x
        wholes = _interleave if rotation.interleaved else lambda x: x
        turned = lambda x: None if x is None else halves(x[..., :width])
        rest = lambda x: None if x is None else x[..., width:]
        parts = [run(turned(log_decay), turned(value), state=turned(before), rotation=angle)]
        parts[0] = jax.tree.map(wholes, parts[0])
        if width < value.shape[-1]:
            parts.append(run(rest(log_decay), rest(value), state=rest(before)))
        return tuple(jnp.concatenate(part, -1) for part in zip(*parts))

    def empty_state(self, batch: int, max_length: int,
                    conv: ConvState | None = None) -> DiagonalState:
        """The state before any token: h, or a cache of `max_length` inputs (`over_pairs`)."""
        site, (lanes, carry) = self.site(), self.structure(batch)
        shape = (site.num_heads, site.key_dim)
        if self.over_pairs(lanes):
            nothing = jnp.zeros((batch, 1, *shape), wide_dtype())
            keys = pairs.Keys(nothing[..., :0], nothing, L.sequence(1, 1),
                              pairs.Integrals(_integral(nothing)))
            memory = cache.init(keys, batch, max_length)
        else:
            memory = jnp.zeros((batch, *shape), wide_dtype())
        return DiagonalState(memory, conv, L.nothing_seen(batch, lanes.axes), carry)


def _weighs_pairs(lanes: L.Lanes) -> bool:
    return any(isinstance(bias, (L.Toeplitz, L.Rowwise)) for bias in lanes.bias)


def _rotation(lane) -> L.Rotation | L.ContentRotation | None:
    """The rotation that a lane value is or brings along."""
    if isinstance(lane, (L.Diagonal, L.ValueRotation)):
        return lane.rotation
    return lane if isinstance(lane, (L.Rotation, L.ContentRotation)) else None


def _turning(lanes: L.Lanes) -> L.Rotation | L.ContentRotation | None:
    """What turns the values: without queries and keys, a rotation of either is one of values."""
    return _rotation(lanes.transport) or _rotation(lanes.value)


def _over_pairs(log_decay, value, seq, lanes, memory, chunk):
    """h_i = sum_j exp(sum of log_decay over (j,i] + bias_ij) u_j, one chunk of i after another."""
    total = _integral(log_decay, None if memory is None else memory.total.bias)
    keys = pairs.Keys(value[..., :0], value, seq.replace(length=None), pairs.Integrals(total))
    if memory is not None:
        keys, _, memory = cache.append(memory, keys)
    static = tuple(bias for bias in lanes.bias if isinstance(bias, (L.Toeplitz, L.Rowwise)))
    inputs = jnp.moveaxis(keys.value, 1, -1)[..., None, :]  # [B,H,K,1,S]
    batch, _, heads, size = value.shape

    def tile(tokens, first):
        seq, total = tokens
        queries = pairs.Queries(jnp.zeros((1, 1, heads, 0)), seq)
        allowed = pairs.mask(seq, keys.seq)
        bias = pairs.log_bias(queries, keys, static, allowed, 1.0)[:, :, None]  # [B,H,1,T,S]
        gap = jnp.minimum(separable_gap(total, keys.integral.bias), 0.0)  # the future is masked
        gap = gap.reshape(batch, heads, size, *gap.shape[-2:])
        weights = jnp.where(allowed[:, None, None], jnp.exp(gap + bias), 0.0)
        return jnp.moveaxis(jnp.sum(weights * inputs, -1), -1, 1)

    return pairs.over_queries(tile, (seq.replace(length=None), total), chunk), memory


def _integral(log_decay: jax.Array, before: Integral | None = None) -> Integral:
    """Running sum [B,T,H*K] of gates [B,T,H,K]; a gate of -inf, which has none, is floored."""
    floor = math.log(jnp.finfo(log_decay.dtype).tiny)
    flat = log_decay.reshape(*log_decay.shape[:2], -1)
    return integrate(jnp.maximum(flat, floor), before)


def _halves(x: jax.Array) -> jax.Array:
    """Channel pairs (2m,2m+1) as (m,m+P)."""
    return jnp.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def _interleave(x: jax.Array) -> jax.Array:
    """Channel pairs (m,m+P) as (2m,2m+1)."""
    return jnp.stack(jnp.split(x, 2, -1), -1).reshape(x.shape)
