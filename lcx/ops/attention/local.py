"""Queries beside the few keys before them: a row cut into windows that become rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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
