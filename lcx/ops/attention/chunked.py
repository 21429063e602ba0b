"""Softmax attention over chunks of queries: memory linear in T for every bias and transport.

Each chunk of queries meets all keys at once, so even a bias that reads the whole row (CoPE) works
unchanged; under a window it meets the keys of its window and the sinks alone, so that time is
linear in T too. Chunks are recomputed in the backward pass; nothing of size [T,S] is ever held.
"""

from __future__ import annotations

import jax

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.ops.attention import local, reference

CHUNK = 128


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, *, rotary_dim: int,
           scale: float, chunk: int | None = None, **options) -> jax.Array:
    """As `reference.attend`, one chunk of queries after another: [B,T,H,V], wide."""
    queries, keys, lanes = mapped_once(queries, keys, lanes, rotary_dim)

    def near(part, keys, temperature):
        return reference.attend(part, keys, lanes.replace(temperature=temperature),
                                rotary_dim=rotary_dim, scale=scale, **options)

    def tile(tokens, first):
        part, temperature = tokens
        part = part.replace(seq=part.seq.replace(length=queries.seq.length),
                            slot=queries.slot + first)
        return near(part, keys, temperature)

    cut = local.plan(queries, keys, lanes, chunk=chunk or CHUNK, **options)
    if cut is not None:
        return local.over_windows(near, queries, keys, lanes.temperature, **cut)
    tokens = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    return pairs.over_queries(tile, (tokens, lanes.temperature), chunk or CHUNK)


def mapped_once(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes,
                rotary_dim: int) -> tuple[pairs.Queries, pairs.Keys, L.Lanes]:
    """The same attention with a transport of single tokens applied before the first chunk."""
    if not isinstance(lanes.transport, endpoint.TRANSPORTS) or lanes.reads_content:
        return queries, keys, lanes
    query, key = endpoint.mapped(queries, keys, lanes.transport, rotary_dim)
    return queries.replace(query=query), keys.replace(key=key), lanes.replace(transport=None)
