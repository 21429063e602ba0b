"""Query-key products whose channels turn *and* fade between the tokens, each at its own rate.

Gates that differ inside a channel pair do not commute with its rotation: turning queries and keys
by their own phases would not be relative. Here the transport of each token is rotate, then decay
("transport semantics"), a 2 x 2 matrix per pair, and a key passes through those after it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.ops import endpoint
from lcx.ops.linear.turning import inside, running
from lcx.ops.scan.transition import Pairs
from lcx.types import wide

BLOCK = 16  # queries that share one reference point


@struct.dataclass
class Untied:
    """A transport of the ops: log gates increment [B,T,H,K] <= 0, and a rotation that comes first.

    A `Piecewise` map turns by the steps of its *key* ids, and the query by what its own id is
    ahead of the key id at the same place: with tied gates that is the difference of the two.
    read_first: a query reads after its own token's turn, before that token's gates but for `fade`
    [B,T,H,K], the part of them that is the scheme's (None: there is none).
    """

    increment: jax.Array
    rotation: Any  # Rotation, ContentRotation (None in a cache that reads ids) or Piecewise
    read_first: bool = struct.field(pytree_node=False, default=False)
    fade: jax.Array | None = None


def scores(queries: Any, query: jax.Array, key: jax.Array, keys: Any, transport: Untied
           ) -> jax.Array:
    """Transported inner products [B,H,T,S] of query [B,T,H,K] and key [B,S,H,K].

    queries, keys: the `pairs.Queries` and `pairs.Keys` they belong to, each of whose path is an
    `Untied` of its tokens.
    """
    rotation, heads = transport.rotation, key.shape[2]
    query_ids, offset = queries.seq.ids, queries.slot

    def run(query, angle, interleaved):
        place = offset
        if transport.read_first:  # that is where the token before stands, turned back by a step
            own = jnp.minimum(offset + jnp.arange(query.shape[1]), angle.shape[1] - 1)
            query = _faded(query, queries.path)
            query = endpoint.rotate(query, -angle[:, own], query.shape[-1], interleaved)
            place = offset - 1
        return untied_scores(query, key, keys.path.increment, angle, interleaved=interleaved,
                             offset=place)

    if isinstance(rotation, L.ContentRotation):
        phase = keys.path.rotation.phase
        step = phase - jnp.roll(phase, 1, axis=1)
        return run(query, -jnp.repeat(step, heads // step.shape[2], 2), rotation.interleaved)
    if isinstance(rotation, L.Rotation):
        step = _steps(keys.seq, keys.seq.ids)
        return run(endpoint.amplified(query, rotation), -L.phase(rotation, step)[:, :, None],
                   rotation.interleaved)
    params, turns = rotation.params, rotation.rotation
    piece = rotation.select(params, query_ids[..., :, None, 0], keys.seq.ids[..., None, :, 0])
    total = 0.0
    for number, (query_map, key_map) in enumerate(rotation.pieces):
        step = _steps(keys.seq, key_map(params, keys.seq.ids))
        ahead = L.phase(turns, query_map(params, query_ids) - key_map(params, query_ids))
        turned = endpoint.rotate(query, ahead, query.shape[-1], turns.interleaved)
        product = run(endpoint.amplified(turned, turns), -L.phase(turns, step)[:, :, None],
                      turns.interleaved)
        total = jnp.where((piece == number)[:, None], product, total)
    return total


def far_reads(queries: Any, keys: Any, transport: Untied, before: jax.Array) -> jax.Array:
    """`pairs.Queries` as they meet, all far, a memory in front of the slots of `keys`: [B,T,H,K].

    before [B,A]: ids of the token at which that memory stands.
    """
    rotation, map_query, map_key = _far(transport)
    ids, heads = queries.seq.ids, queries.query.shape[2]
    ahead = L.phase(rotation, map_query(ids) - map_key(ids))
    query = endpoint.rotate(wide(queries.query), ahead, queries.query.shape[-1],
                            rotation.interleaved)
    query = endpoint.amplified(query, rotation)
    steps, increment = _framed(keys, transport, before, heads, behind=False)
    size = query.shape[-1]
    units = _units(query, size)
    units = jnp.pad(units, [(0, 0), (0, steps.shape[1] - size), (0, 0), (0, 0)])
    place = queries.slot + size
    if transport.read_first:
        own = place + jnp.arange(query.shape[1])
        query = _faded(query, queries.path)
        query = endpoint.rotate(query, -steps[:, own], size, rotation.interleaved)
        place = place - 1
    scores = untied_scores(query, units, increment, steps, offset=place,
                           interleaved=rotation.interleaved)
    return jnp.swapaxes(scores[..., :size], 1, 2)


def to_end(keys: Any, heads: int, transport: Untied, before: jax.Array):
    """Keys [B,S,H,K] as a memory at their last slot holds them, all far, and what it holds of one
    that stood `before` them: a map [B,H,K,K] of its rows."""
    rotation, _, _ = _far(transport)
    key = jnp.repeat(wide(keys.key), heads // keys.key.shape[2], axis=2)
    steps, increment = _framed(keys, transport, before, heads, behind=True)
    size = key.shape[-1]
    units = _units(key, size)
    scores = untied_scores(units, jnp.concatenate([units, key, units], 1), increment, steps,
                           offset=size + key.shape[1], interleaved=rotation.interleaved)
    moved = jnp.moveaxis(scores[..., size:-size], 2, -1)  # [B,H,S,K]
    return jnp.swapaxes(moved, 1, 2), scores[..., :size]


def _faded(query: jax.Array, path: Untied) -> jax.Array:
    """A query [B,T,H,K] that reads before its own token's gates, behind the scheme's part."""
    return wide(query) if path.fade is None else wide(query) * jnp.exp(path.fade)


def _far(transport: Untied):
    """The rotation, and the id maps of queries and keys, of pairs that are far apart."""
    rotation = transport.rotation
    if isinstance(rotation, L.Rotation):
        return rotation, lambda ids: ids, lambda ids: ids
    maps = rotation.pieces[rotation.far]
    return rotation.rotation, *(lambda ids, f=f: f(rotation.params, ids) for f in maps)


def _units(like: jax.Array, size: int) -> jax.Array:
    """Unit vectors [B,K,H,K], one in each slot."""
    eye = jnp.eye(size, dtype=like.dtype)[:, None]
    return jnp.broadcast_to(eye, (like.shape[0], size, like.shape[2], size))


def _framed(keys, transport: Untied, before: jax.Array, heads: int, behind: bool):
    """Angles [B,*,1,P] and log gates [B,*,H,K] of the slots of `keys`, far, with as many slots in
    front (and behind) as there are channels, in which nothing moves."""
    rotation, _, map_key = _far(transport)
    ids = map_key(jnp.concatenate([before[:, None], keys.seq.ids], 1))
    first = keys.seq.segment != jnp.roll(keys.seq.segment, 1, axis=1)
    first &= jnp.arange(first.shape[1]) > 0
    step = jnp.where(first[..., None], 0.0, ids[:, 1:] - ids[:, :-1])
    increment = keys.path.increment
    size = increment.shape[-1]
    frame = [(0, 0), (size, size if behind else 0), (0, 0), (0, 0)]
    return jnp.pad(-L.phase(rotation, step)[:, :, None], frame), jnp.pad(increment, frame)


def _steps(seq: L.Sequence, ids: jax.Array) -> jax.Array:
    """What the ids [.,S,A] of consecutive slots differ by; 0 where a document starts."""
    step = ids - jnp.roll(ids, 1, axis=1)
    if seq.segment is None:
        first = jnp.arange(ids.shape[1])[None] == 0
    else:
        first = seq.segment != jnp.roll(seq.segment, 1, axis=1)
    return jnp.where(first[..., None], 0.0, step)


def untied_scores(query: jax.Array, key: jax.Array, log_decay: jax.Array, angle: jax.Array, *,
                  offset: int | jax.Array = 0, interleaved: bool = False,
                  form: str = "blocked") -> jax.Array:
    """z_ij = q_i^T M_i .. M_{j+1} k_j with M_s = diag(exp(log_decay_s)) R(angle_s); no scale.

    query [B,T,H,K], query t sits at slot offset + t (which may be traced); key, log_decay
    [B,S,H,K]; angle [B or 1,S,H or 1,P] radians, of the leading 2P channels, pairs (2m, 2m + 1) if
    interleaved, else (m, m + P). form: "blocked" or "recurrent" (slot by slot, the naive twin).
    Returns z [B,H,T,S], at least float32; where j > i it is finite and means nothing: mask it.
    """
    if form not in ("blocked", "recurrent"):
        raise ValueError(f"form is {form!r}: choose 'blocked' or 'recurrent'")
    paired = lambda x: _paired(wide(x), 2 * angle.shape[-1], interleaved)
    query, key, decay = paired(query), paired(key), paired(jnp.exp(wide(log_decay)))
    spare = decay.shape[-1] - angle.shape[-1]
    angle = jnp.broadcast_to(angle, (*decay.shape[:3], angle.shape[-1]))
    angle = jnp.pad(wide(angle), [(0, 0)] * 3 + [(0, spare)])
    batch, _, heads = decay.shape[:3]

    def together(x):  # [B,S,H,*] -> [G,S,*]: CPU backends fail on gradients of many axes
        x = jnp.swapaxes(x, 1, 2)
        return x.reshape(batch * heads, *x.shape[2:])

    query, key, decay, angle = map(together, (query, key, decay, angle))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin], -2), jnp.stack([sin, cos], -2)], -3)
    token = Pairs(decay[..., :, None, :] * turn)  # [G,S,2,2,P']
    run = _blocked if form == "blocked" else _recurrent
    out = run(query, key, token, offset)  # [G,T,S]
    return out.reshape(batch, heads, *out.shape[1:])


def _paired(x: jax.Array, turned: int, interleaved: bool) -> jax.Array:
    """[...,K] -> [...,2,P']: the turned pairs, then the other channels two by two."""
    pairs, rest = x[..., :turned], x[..., turned:]
    if interleaved:
        pairs = jnp.stack([pairs[..., 0::2], pairs[..., 1::2]], -2)
    else:
        pairs = pairs.reshape(*x.shape[:-1], 2, turned // 2)
    rest = jnp.pad(rest, [(0, 0)] * (x.ndim - 1) + [(0, rest.shape[-1] % 2)])
    return jnp.concatenate([pairs, rest.reshape(*x.shape[:-1], 2, rest.shape[-1] // 2)], -1)


def _recurrent(query, key, token, offset):
    place = offset + jnp.arange(query.shape[1])

    def step(moved, slot):  # moved [G,T,2,P] = (M_i .. M_{j+1})^T q_i
        key, token, number = slot
        score = jnp.einsum("gtcp,gcp->gt", moved, key)
        after = Pairs(token[:, None]).transpose().apply(moved)
        reached = (number <= place)[:, None, None]
        return jnp.where(reached, after, moved), score

    slots = jnp.moveaxis(key, 1, 0), jnp.moveaxis(token.matrix, 1, 0), jnp.arange(key.shape[1])
    _, out = jax.lax.scan(step, query, slots, reverse=True)
    return jnp.moveaxis(out, 0, -1)


def _blocked(query, key, token, offset):
    """Blocks of queries one after another; all earlier keys stand moved to the block's start."""
    length, slots = query.shape[1], key.shape[1]
    blocks = -(-length // BLOCK)
    query = jnp.pad(query, [(0, 0), (0, blocks * BLOCK - length), (0, 0), (0, 0)])
    query = query.reshape(-1, blocks, BLOCK, *query.shape[2:])  # [G,R,16,2,P]
    own = offset + jnp.arange(blocks)[:, None] * BLOCK + jnp.arange(BLOCK)
    near = jnp.minimum(own, slots - 1)  # clipped ones are beyond every column below
    own_key, steps = key[:, near], Pairs(token.matrix[:, near])
    prefix = running(steps, lambda done, now: now.compose(done), axis=2)
    inner = inside(steps, query, own_key)  # [G,R,16,16]
    left = prefix.transpose().apply(query)
    whole = prefix.matrix[:, :, -1]
    own_key = _to_end(steps, axis=2).apply(own_key)

    def block(moved, now):  # moved [G,S,2,P]: keys at the start of this block
        left, whole, own_key, first = now
        place = jnp.arange(slots) - first
        earlier = (place < 0)[:, None, None]
        outer = jnp.einsum("gtcp,gscp->gts", left, jnp.where(earlier, moved, 0))
        ours = own_key[:, jnp.clip(place, 0, BLOCK - 1)]
        moved = jnp.where(earlier, Pairs(whole[:, None]).apply(moved), ours)
        return moved, outer

    moved = jnp.zeros_like(key)
    if not isinstance(offset, int) or offset:
        before = (jnp.arange(slots) < offset)[:, None, None, None]
        eye = jnp.eye(2, dtype=key.dtype)[..., None]
        moved = _to_end(Pairs(jnp.where(before, token.matrix, eye)), axis=1).apply(key)
    first = lambda x: jnp.moveaxis(x, 1, 0)
    _, outer = jax.lax.scan(block, moved, (first(left), first(whole), first(own_key), own[:, 0]))
    place = jnp.arange(slots) - own[:, :1]  # of each slot within each block [R,S]
    index = jnp.clip(place, 0, BLOCK - 1)[:, None, None]
    inner = jnp.take_along_axis(first(inner), jnp.broadcast_to(index, outer.shape), -1)
    ours = ((place >= 0) & (place < BLOCK))[:, None, None]
    out = jnp.moveaxis(jnp.where(ours, inner, outer), 0, 1)  # [G,R,16,S]
    return out.reshape(len(out), blocks * BLOCK, slots)[:, :length]


def _to_end(steps: Pairs, axis: int) -> Pairs:
    """Products of the steps after each one, to the end of the axis."""
    total = jax.lax.associative_scan(lambda late, now: late.compose(now), steps, reverse=True,
                                     axis=axis).matrix
    last = [slice(None)] * total.ndim
    last[axis] = slice(-1, None)
    eye = jnp.broadcast_to(jnp.eye(2, dtype=total.dtype)[..., None], total[tuple(last)].shape)
    rest = [slice(None)] * total.ndim
    rest[axis] = slice(1, None)
    return Pairs(jnp.concatenate([total[tuple(rest)], eye], axis))
