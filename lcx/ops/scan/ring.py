"""An element-wise recurrence whose inputs keep their ids for a while: near ones in a ring buffer.

  h_i = sum_{j<=i} w_ij T_ij u_j,   T_ij = prod over t in (j,i] of exp(log_decay_t) R(turn_tj)

where the weight w of a pair is any function of its two ids, and so is the angle a of a pair, of
which each token brings turn_tj = a_tj - a_{t-1,j}. From `window` tokens on, w must be a constant
and the turn one that the token alone decides; the sum over those far inputs is a recurrence like
any other, `window` tokens late. Near inputs are carried along, age by age, for all tokens at once:
a product of 2 x 2 matrices has no closed form where the two gates of a pair differ. A mixer whose
own tokens turn what they meet (`own`) adds that to every turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from lcx.ops.endpoint import rotate
from lcx.ops.scan.turned import turned_scan


class Pair(NamedTuple):
    """What a pair of tokens says, from the ids of reader and input, both [.,N,A].

    angle: -> radians [.,N,P], or None: it turns by `rotation` of the tokens in between; weight: ->
    log of the factor [.,N,H], or None; far: -> whether its weight and turn are settled [.,N];
    far_weight: log of the factor from then on [H] or 0; interleaved: pairs (2m,2m+1).
    """

    angle: Callable | None
    weight: Callable | None
    far: Callable
    far_weight: jax.Array | float = 0.0
    interleaved: bool = False


@struct.dataclass
class RingState:
    """value [B,W,H,K]: near inputs as the last token sees them, oldest first; angle [B,W,P] of each
    then; ids [B,W,A]; alive [B,W]: in a slot that is used, and of the last token's document; far
    [B,H,K]: the sum of the others."""

    value: jax.Array
    angle: jax.Array | None
    ids: jax.Array
    alive: jax.Array
    far: jax.Array


def init_ring(batch: int, window: int, heads: int, dim: int, angles: int | None, axes: int,
              dtype) -> RingState:
    """Nothing seen yet. angles: P where pairs have angles."""
    return RingState(
        jnp.zeros((batch, window, heads, dim), dtype),
        None if angles is None else jnp.zeros((batch, window, angles), dtype),
        jnp.zeros((batch, window, axes), dtype), jnp.zeros((batch, window), bool),
        jnp.zeros((batch, heads, dim), dtype))


def ring_scan(log_decay: jax.Array, value: jax.Array, ids: jax.Array, pair: Pair, window: int, *,
              rotation: jax.Array | None = None, own: jax.Array | None = None,
              start: jax.Array | None = None, state: RingState | None = None,
              form: str | None = None):
    """The recurrence of this module: value [B,T,H,K] -> h [B,T,H,K] and the next state or None.

    log_decay [B,T,H,K] <= 0; ids [.,T,A]; rotation [.,T,.,P]: radians by which a token turns the
    inputs that have no angle of their own, and the far ones; own [.,T,H,P]: radians by which it
    turns all of them besides; start [.,T] bool: of a segment; form: "scan" goes token by token,
    others choose the form of the far recurrence. An input that is `window` tokens old while
    pair.far does not hold makes h NaN: a state cannot forget it.
    """
    if form == "scan" and value.shape[1] > 1:
        return _token_by_token(log_decay, value, ids, pair, window, rotation, own, start, state)
    length, found = value.shape[1], None
    if own is not None:
        rotation = own if rotation is None else rotation + own
    tokens = (value, jnp.broadcast_to(log_decay, value.shape), ids,
              rotation if pair.angle is None else own,
              jnp.zeros((1, length), bool) if start is None else start)
    out, enter, ring = _young(tokens, pair, window)
    if state is not None:
        old_out, old_enter, rest = _old(tokens, pair, window, state)
        out, enter = out + old_out, enter + old_enter
        ring = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], 1), rest, ring)
    if state is not None or length > window:
        far, last = turned_scan(log_decay, enter, rotation, interleaved=pair.interleaved,
                                state=None if state is None else state.far, start=start, form=form)
        out = out + far * jnp.exp(jnp.asarray(pair.far_weight, far.dtype))[..., None]
    if state is not None:
        found = RingState(*ring, last.astype(state.far.dtype))
    return out, found


def _moved(held, token, pair: Pair):
    """(value, angle, ids, alive) of inputs [.,N,...] once a token [.,N,...] has come."""
    value, angle, ids, alive = held
    decay, reader, rotation, start = token
    turn = rotation
    if pair.angle is not None:
        new = pair.angle(reader, ids)
        turn, angle = (new - angle)[..., None, :], new
        turn = turn if rotation is None else turn + rotation
    if turn is not None:
        value = rotate(value, turn, value.shape[-1], pair.interleaved)
    value = jnp.where(start[..., None, None], 0, jnp.exp(decay) * value)
    return value, angle, ids, alive & ~start


def _weighed(held, reader, pair: Pair):
    """The inputs as the reader adds them up."""
    value, _, ids, alive = held
    if pair.weight is None:
        return value
    weight = jnp.where(alive[..., None], pair.weight(reader, ids), -jnp.inf)  # before an overflow
    return value * jnp.exp(weight)[..., None]


def _entering(held, reader, pair: Pair):
    """Inputs that leave the ring, NaN where they still needed it."""
    lost = held[3] & ~pair.far(reader, held[2])
    return jnp.where(lost[..., None, None], jnp.nan, held[0])


def _young(tokens, pair: Pair, window: int):
    """Inputs of these tokens: h, what becomes far at each token, and the ring after the last."""
    value, log_decay, ids, rotation, start = tokens
    batch, length = value.shape[:2]
    ids = jnp.broadcast_to(ids, (batch, *ids.shape[1:]))
    angle = None
    if pair.angle is not None:
        angle = pair.angle(ids, ids)
        value = rotate(value, angle, value.shape[-1], pair.interleaved)
    held = (value, angle, ids, jnp.ones((batch, length), bool))
    shift = lambda a: jnp.pad(a[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (a.ndim - 2))
    last = lambda held: jax.tree.map(lambda a: a[:, -1], held)
    out, enter = _weighed(held, ids, pair), jnp.zeros_like(value)
    oldest = min(length - 1, window)

    def older(carry, age):
        held, out, enter = carry
        held = _moved(jax.tree.map(shift, held), (log_decay, ids, rotation, start), pair)
        out = out + jnp.where(age < window, _weighed(held, ids, pair), 0)
        enter = jnp.where(age == window, _entering(held, ids, pair), enter)
        return (held, out, enter), last(held)

    seen = jax.tree.map(lambda a: a[None], last(held))
    if oldest:
        block = math.isqrt(oldest)  # the backward pass keeps one carry in so many ages
        ages = jnp.arange(1, -(-oldest // block) * block + 1).reshape(-1, block)
        several = jax.checkpoint(lambda carry, ages: jax.lax.scan(older, carry, ages))
        (_, out, enter), ends = jax.lax.scan(several, (held, out, enter), ages)
        ends = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ends)
        seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), seen, ends)
    kept = min(length, window)
    return out, enter, jax.tree.map(lambda a: jnp.moveaxis(a[:kept][::-1], 0, 1), seen)


def _old(tokens, pair: Pair, window: int, state: RingState):
    """The same of the inputs in the ring; after `window` tokens none is left."""
    length = tokens[0].shape[1]
    count = min(length, window)
    first = jax.tree.map(lambda a: jnp.moveaxis(a[:, :count], 1, 0), tokens[1:])

    def step(held, piece):
        number, token = piece[0], jax.tree.map(lambda a: a[:, None], piece[1])
        held, reader = _moved(held, token, pair), token[1]
        slot = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, number, 1, 1), held)
        enter = _entering(slot, reader, pair)[:, 0]
        near = (jnp.arange(window) > number)[:, None, None]
        value = jnp.where(near, held[0], 0)
        held = (value, *held[1:])
        return held, (jnp.sum(_weighed(held, reader, pair), 1), enter)

    held = (state.value, state.angle, state.ids, state.alive)
    held, found = jax.lax.scan(step, held, (jnp.arange(count), first))
    fill = lambda a: jnp.pad(jnp.moveaxis(a, 0, 1), [(0, 0), (0, length - count), (0, 0), (0, 0)])
    out, enter = jax.tree.map(fill, found)
    return out, enter, jax.tree.map(lambda a: a[:, count:], held)


def _token_by_token(log_decay, value, ids, pair, window, rotation, own, start, state):
    """The naive twin: one token after another."""
    batch, length, heads, dim = value.shape
    whole = state
    if state is None:
        angles = None if pair.angle is None else pair.angle(ids[:1, :1], ids[:1, :1]).shape[-1]
        whole = init_ring(batch, window, heads, dim, angles, ids.shape[-1], value.dtype)
    start = jnp.zeros((1, length), bool) if start is None else start
    tokens = (jnp.broadcast_to(log_decay, value.shape), value, ids, rotation, own, start)

    def step(held, token):
        log_decay, value, ids, rotation, own, start = jax.tree.map(lambda a: a[:, None], token)
        out, held = ring_scan(log_decay, value, ids, pair, window, rotation=rotation, own=own,
                              start=start, state=held)
        return held, out[:, 0]

    tokens = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), tokens)
    whole, out = jax.lax.scan(step, whole, tokens)
    return jnp.moveaxis(out, 0, 1), None if state is None else whole
