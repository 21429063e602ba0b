"""Softmax attention over chunks of queries: memory linear in T for every bias and transport.

Each chunk of queries meets all keys at once, so even a bias that reads the whole row (CoPE) works
unchanged. Chunks are recomputed in the backward pass; nothing of size [T,S] is ever held.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import pairs
from lcx.ops.attention import reference


def attend(queries: pairs.Queries, keys: pairs.Keys, lanes, *, rotary_dim: int, scale: float,
           causal: bool, window: int | None, chunk: int = 128) -> jax.Array:
    """As `reference.attend`, one chunk of queries after another: [B,T,H,V], wide."""
    batch, length, heads, _ = queries.query.shape
    count = -(-length // chunk)
    if count <= 1:
        return reference.attend(queries, keys, lanes, rotary_dim=rotary_dim, scale=scale,
                                causal=causal, window=window)
    padding = count * chunk - length
    if isinstance(lanes.transport, L.Rotation) and not _reads_content(lanes):
        query, key = pairs.rotated(queries, keys, lanes.transport, rotary_dim)  # once, not per chunk
        queries, keys = queries.replace(query=query), keys.replace(key=key)
        lanes = lanes.replace(transport=None)

    def split(a):  # [B,T,...] -> [count,B,chunk,...]; padded queries repeat the last one
        a = jnp.pad(a, [(0, 0), (0, padding)] + [(0, 0)] * (a.ndim - 2), mode="edge")
        return jnp.moveaxis(a.reshape(a.shape[0], count, chunk, *a.shape[2:]), 1, 0)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def one(keys, lanes, piece):
        query, seq, integral, temperature, number = piece
        part = pairs.Queries(query, seq, integral, queries.slot + number * chunk)
        return reference.attend(part, keys, lanes.replace(temperature=temperature),
                                rotary_dim=rotary_dim, scale=scale, causal=causal, window=window)

    length_told = jnp.broadcast_to(queries.seq.length, (count,))
    seq = jax.tree.map(split, queries.seq.replace(length=None)).replace(length=length_told)
    pieces = (split(queries.query), seq, jax.tree.map(split, queries.integral),
              jax.tree.map(split, lanes.temperature), jnp.arange(count))
    out = jax.lax.map(lambda piece: one(keys, lanes, piece), pieces)
    out = jnp.moveaxis(out, 0, 1).reshape(batch, count * chunk, heads, -1)
    return out[:, :length]


def _reads_content(lanes) -> bool:
    return any(isinstance(bias, L.Pairwise) for bias in lanes.bias)
