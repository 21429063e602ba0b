"""Softmax attention over chunks of queries: memory linear in T for every bias and transport.

Each chunk of queries meets all keys at once, so even a bias that reads the whole row (CoPE) works
unchanged. Chunks are recomputed in the backward pass; nothing of size [T,S] is ever held.
"""

from __future__ import annotations

import jax

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.ops.attention import reference

CHUNK = 128


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes: L.Lanes, *, rotary_dim: int,
           scale: float, causal: bool, window: int | None, chunk: int | None = None) -> jax.Array:
    """As `reference.attend`, one chunk of queries after another: [B,T,H,V], wide."""
    if isinstance(lanes.transport, endpoint.TRANSPORTS) and not lanes.reads_content:
        query, key = endpoint.mapped(queries, keys, lanes.transport, rotary_dim)  # once for all
        queries, keys = queries.replace(query=query), keys.replace(key=key)
        lanes = lanes.replace(transport=None)

    def tile(tokens, first):
        part, temperature = tokens
        part = part.replace(seq=part.seq.replace(length=queries.seq.length),
                            slot=queries.slot + first)
        return reference.attend(part, keys, lanes.replace(temperature=temperature),
                                rotary_dim=rotary_dim, scale=scale, causal=causal, window=window)

    tokens = queries.replace(seq=queries.seq.replace(length=None), slot=None)
    return pairs.over_queries(tile, (tokens, lanes.temperature), chunk or CHUNK)
