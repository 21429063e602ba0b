"""Queries beside the few keys before them: a row cut into windows, in turn or as further rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import pairs


def windows(queries: pairs.Queries, keys: pairs.Keys, rows: Any, size: int
            ) -> tuple[pairs.Queries, pairs.Keys, Any, Callable]:
    """Every `size` queries with the 2 x size keys that end with their own.

    queries [B,T,...]; keys [B,size+T,...]: those of the queries and `size` older slots (order -1
    where empty); rows: further arrays [B,T,...] of the queries. Returns the same with leading axis
    B x T/size, and what puts their output together again. For attention that reads at most `size`
    tokens back it costs T x 2 size pairs instead of T x T.
    """
    batch, length = queries.query.shape[:2]
    count = -(-length // size)

    def cut(a, offset):  # [1 or B,offset+T,...] -> [B*count,offset+size,...]
        a = jnp.broadcast_to(a, (batch, *a.shape[1:]))
        parts = a.reshape(batch, -1, size, *a.shape[2:])
        if offset:
            parts = jnp.concatenate([parts[:, :-1], parts[:, 1:]], 2)
        return parts.reshape(batch * count, *parts.shape[2:])

    told, extra = queries.seq.length, count * size - length
    queries = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    queries, rows = (_padded(x, 0, extra) for x in (queries, rows))
    keys = _empty(keys, 0, extra)
    queries = jax.tree.map(lambda a: cut(a, 0), queries)
    queries = queries.replace(seq=queries.seq.replace(length=told), slot=size)
    keys = jax.tree.map(lambda a: cut(a, size), keys)

    def joined(out):
        return out.reshape(batch, count * size, *out.shape[2:])[:, :length]

    return queries, keys, jax.tree.map(lambda a: cut(a, 0), rows), joined


def plan(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, *, chunk: int, causal: bool,
         window: int | None, sinks: int = 0, pattern: Callable | None = None,
         **others) -> dict[str, int] | None:
    """What `over_windows` is told where a query needs no key but those of its window and its
    document's sinks, and that is less than all; else None. For whole rows: the continuation of a
    stream has a cache as short as its window."""
    if window is None or not causal or pattern is not None:
        return None
    if sinks and (isinstance(lanes.transport, L.Householder) or lanes.logits is not None):
        return None  # they read what lies between a sink and the window
    length = queries.query.shape[1]
    if not (isinstance(queries.slot, int) and queries.slot == 0 and keys.key.shape[1] == length):
        return None
    size = max(chunk, -(-(window - 1) // 4))  # so that the windows hold a key at most six times
    back = -(-(window - 1) // size) * size
    return dict(size=size, back=back, sinks=sinks) if back + size < length else None


def over_windows(run: Callable, queries: pairs.Queries, keys: pairs.Keys, rows: Any, *, size: int,
                 back: int, sinks: int = 0) -> jax.Array:
    """run(queries, keys, rows) for every `size` queries with the last back + size keys up to them.

    queries and keys [B,T,...] of the same tokens, in the order of arrival; rows: further arrays
    [B,T,...] of the queries; back: a multiple of size; run returns [B,size,...]. With `sinks`, the
    first tokens of a window's document, where they lie before it, stand in front of its keys.
    Returns [B,T,...]. Each window is recomputed in the backward pass; time and memory are linear
    in T, forward and backward, because windows are cut before the loop and not in it.
    """
    batch, length = queries.query.shape[:2]
    count = -(-length // size)
    told, extra = queries.seq.length, count * size - length

    def cut(a, back):  # [1 or B,back+count*size,...] -> [count,B,back+size,...]
        parts = jnp.moveaxis(a.reshape(batch, -1, size, *a.shape[2:]), 1, 0)
        parts = [parts[n:n + count] for n in range(back // size + 1)]
        return jnp.concatenate(parts, 2)

    def padded(a):  # padded queries repeat the last one
        a = jnp.broadcast_to(a, (batch, *a.shape[1:]))
        return jnp.pad(a, [(0, 0), (0, extra)] + [(0, 0)] * (a.ndim - 2), mode="edge")

    keys = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), keys)
    windows = jax.tree.map(lambda a: cut(a, back), _empty(keys, back, extra))
    if sinks:
        far = _sinks(keys, jnp.arange(count) * size - back, sinks)
        windows = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 2), far, windows)
    tokens = (queries.replace(seq=queries.seq.replace(length=None), slot=None), rows)
    tokens = jax.tree.map(lambda a: cut(padded(a), 0), tokens)

    def window(piece):
        (part, rows), keys = piece
        part = part.replace(seq=part.seq.replace(length=told), slot=sinks + back)
        return run(part, keys, rows)

    out = jnp.moveaxis(jax.lax.map(jax.checkpoint(window), (tokens, windows)), 0, 1)
    return out.reshape(batch, count * size, *out.shape[3:])[:, :length]


def _sinks(keys: pairs.Keys, first: jax.Array, sinks: int) -> pairs.Keys:
    """The first tokens of the document that reaches into each window from before: keys [B,S,...],
    first slot of each window [count] -> [count,B,sinks,...], empty where the window has them.

    A query whose document starts inside its window finds them there; all others of the window
    belong to the one document that holds its first slot.
    """
    within = jnp.maximum(first, 0)
    place = (within - keys.seq.index[:, within])[..., None] + jnp.arange(sinks)  # [B,count,sinks]
    outside = (place >= 0) & (place < first[:, None])
    place = jnp.clip(place, 0, keys.key.shape[1] - 1)
    far = jax.tree.map(lambda a: jnp.moveaxis(jax.vmap(lambda a, i: a[i])(a, place), 1, 0), keys)
    order = jnp.where(jnp.moveaxis(outside, 1, 0), far.seq.order, -1)
    return far.replace(seq=far.seq.replace(order=order))


def behind(keys: pairs.Keys, size: int) -> pairs.Keys:
    """`size` empty slots in front of the keys of a call that starts a stream."""
    return _empty(keys, size, 0)


def _padded(tree: Any, before: int, after: int) -> Any:
    pad = lambda a: jnp.pad(a, [(0, 0), (before, after)] + [(0, 0)] * (a.ndim - 2))
    return jax.tree.map(pad, tree)


def _empty(keys: pairs.Keys, before: int, after: int) -> pairs.Keys:
    """Keys with empty slots around them."""
    order = jnp.pad(keys.seq.order, [(0, 0), (before, after)], constant_values=-1)
    keys = _padded(keys, before, after)
    return keys.replace(seq=keys.seq.replace(order=order))
