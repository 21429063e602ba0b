"""Weights between pairs of tokens: what every quadratic form shares, softmax or linear.

`Queries` and `Keys` carry all that a pair's weight depends on; keys are kept *raw*, so that a
cache, a tile and a later change of frequencies agree. Each lane type has its meaning here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.integral import Integral, integrate, separable_gap
from lcx.ops.householder import householder_scores
from lcx.types import wide


@struct.dataclass
class Queries:
    """query [B,T,H,K]; seq; integral [B,T,H] of the separable increments, or None.

    slot: the key slot of the first query; queries occupy consecutive slots (path transports).
    """

    query: jax.Array
    seq: L.Sequence
    integral: Integral | None = None
    slot: jax.Array | int = 0


@struct.dataclass
class Keys:
    """ALL key-side data, raw: key [B,S,N,K], value [B,S,N,V], seq, integral, path transport.

    One pytree to cache, to tile or to send round a ring. N key heads divide the H query heads.
    """

    key: jax.Array
    value: jax.Array
    seq: L.Sequence
    integral: Integral | None = None
    path: L.Householder | None = None


def mask(queries: L.Sequence, keys: L.Sequence, *, causal: bool = True,
         window: int | None = None) -> jax.Array:
    """Which keys a query may read: [B,T,S] bool, by arrival order and segment, never by slot."""
    query_order, key_order = queries.order[..., :, None], keys.order[..., None, :]
    allowed = key_order >= 0
    if causal:
        allowed &= key_order <= query_order
    if window is not None:
        allowed &= key_order > query_order - window
        if not causal:
            allowed &= key_order < query_order + window
    if queries.segment is not None:
        allowed &= queries.segment[..., :, None] == keys.segment[..., None, :]
    return allowed


def scores(queries: Queries, keys: Keys, transport, rotary_dim: int) -> jax.Array:
    """Transported inner products [B,H,T,S], wide and unscaled.

    A transport acts on the leading `rotary_dim` channels; the rest is compared as it is.
    """
    query, key = queries.query, keys.key
    match transport:
        case None:
            return inner(query, key)
        case L.Rotation():
            return inner(*rotated(queries, keys, transport, rotary_dim))
        case L.Piecewise():
            return _piecewise(queries, keys, transport, rotary_dim)
        case L.Householder():
            heads = query.shape[2]
            repeated = lambda a: repeat_heads(a, heads)
            path = householder_scores(
                wide(query[..., :rotary_dim]), wide(repeated(key[..., :rotary_dim])),
                wide(repeated(keys.path.vector)), wide(repeated(keys.path.beta)),
                offset=queries.slot)
            if rotary_dim == query.shape[-1]:
                return path
            return path + inner(query[..., rotary_dim:], key[..., rotary_dim:])
    raise NotImplementedError(f"no pair weights for the transport {type(transport).__name__}")


def log_bias(queries: Queries, keys: Keys, biases: tuple, allowed: jax.Array,
             scale: float) -> jax.Array | None:
    """Sum of the bias lanes [B,H,T,S] (or broadcastable), wide; None where there is none."""
    total, integrated = None, False
    for bias in biases:
        match bias:
            case L.Separable():
                if integrated:
                    continue  # all separable increments were summed before they were integrated
                integrated = True
                # future pairs would be positive; they are masked, so keep them harmless
                term = jnp.minimum(separable_gap(queries.integral, keys.integral), 0.0)
            case L.Toeplitz():
                distance = queries.seq.ids[..., :, None, 0] - keys.seq.ids[..., None, :, 0]
                term = jnp.moveaxis(wide(bias.kernel(bias.params, distance)), -1, 1)
            case L.Pairwise():
                heads = queries.query.shape[2]
                tile = L.Tile(wide(queries.query), wide(repeat_heads(keys.key, heads)),
                              allowed, scale)
                term = bias.kernel(bias.params, tile)
            case _:
                raise NotImplementedError(f"no pair bias for {type(bias).__name__}")
        total = term if total is None else total + term
    return total


def integral(biases: tuple, before: Integral | None = None) -> Integral | None:
    """The integral of all separable biases of a layer together; None where there is none."""
    increments = [b.increment for b in biases if isinstance(b, L.Separable)]
    return integrate(sum(increments), before) if increments else None


def rotated(queries: Queries, keys: Keys, rotation: L.Rotation, rotary_dim: int):
    """Query and key, each turned by its own phase (endpoint form of a rotation)."""
    query = rotate(queries.query, L.phase(rotation, queries.seq.ids), rotation, rotary_dim)
    key = rotate(keys.key, L.phase(rotation, keys.seq.ids), rotation, rotary_dim)
    return amplified(query, rotation), key


def amplified(query: jax.Array, rotation: L.Rotation) -> jax.Array:
    """The factor g of cos and sin on both sides, as g^2 on the rotated channels of the query."""
    if rotation.amplitude is None:
        return query
    width = 2 * rotation.frequency.shape[-1]
    gain = (rotation.amplitude ** 2).astype(query.dtype)
    return jnp.concatenate([query[..., :width] * gain, query[..., width:]], -1)


def rotate(x: jax.Array, angle: jax.Array, rotation: L.Rotation, rotary_dim: int) -> jax.Array:
    """Turn channel pairs of x [B,T,H,K] by angle [B,T,P]; channels beyond 2P stay. Wide inside."""
    width = 2 * angle.shape[-1]
    if width > rotary_dim:
        raise ValueError(f"the rotation turns {width} channels, the mixer offers {rotary_dim}")
    turned, rest = wide(x[..., :width]), x[..., width:]
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    if rotation.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], -1)
        turned = turned.reshape(*turned.shape[:-2], width)
    else:
        first, second = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


def inner(query: jax.Array, key: jax.Array) -> jax.Array:
    """[B,T,H,K], [B,S,N,K] -> [B,H,T,S], accumulated wide; heads share keys in groups."""
    batch, length, heads, dim = query.shape
    groups = query.reshape(batch, length, key.shape[2], -1, dim)
    product = jnp.einsum("btngk,bsnk->bngts", groups, key,
                         preferred_element_type=wide(query[:0]).dtype)
    return product.reshape(batch, heads, length, key.shape[1])


def mixed(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Weighted sums of values: [B,H,T,S], [B,S,N,V] -> [B,T,H,V], accumulated wide."""
    batch, heads, length, size = weights.shape
    groups = weights.reshape(batch, value.shape[2], -1, length, size).astype(value.dtype)
    out = jnp.einsum("bngts,bsnv->btngv", groups, value,
                     preferred_element_type=wide(value[:0]).dtype)
    return out.reshape(batch, length, heads, value.shape[-1])


def repeat_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B,S,N,...] -> [B,S,H,...]: each key head once per query head of its group."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def over_queries(run: Callable, tokens: Any, chunk: int) -> jax.Array:
    """run(tokens, first) for `chunk` tokens after another, first their number: [B,T,...].

    tokens: a pytree of arrays [.,T,...]; run returns [B,chunk,...]. Each chunk is recomputed in
    the backward pass, so that memory is linear in T.
    """
    length = jax.tree.leaves(tokens)[0].shape[1]
    if length <= chunk:
        return run(tokens, 0)
    count = -(-length // chunk)

    def split(a):  # [B,T,...] -> [count,B,chunk,...]; padded tokens repeat the last one
        widths = [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (a.ndim - 2)
        a = jnp.pad(a, widths, mode="edge")
        return jnp.moveaxis(a.reshape(a.shape[0], count, chunk, *a.shape[2:]), 1, 0)

    body = jax.checkpoint(lambda piece: run(*piece))
    out = jax.lax.map(body, (jax.tree.map(split, tokens), jnp.arange(count) * chunk))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :length]


def _piecewise(queries, keys, transport: L.Piecewise, rotary_dim: int) -> jax.Array:
    rotation, params = transport.rotation, transport.params
    query_ids, key_ids = queries.seq.ids, keys.seq.ids
    piece = transport.select(params, query_ids[..., :, None, 0], key_ids[..., None, :, 0])
    total = 0.0
    for number, (query_map, key_map) in enumerate(transport.pieces):
        query = rotate(queries.query, L.phase(rotation, query_map(params, query_ids)), rotation,
                       rotary_dim)
        key = rotate(keys.key, L.phase(rotation, key_map(params, key_ids)), rotation, rotary_dim)
        product = inner(amplified(query, rotation), key)
        total = jnp.where((piece == number)[:, None], product, total)
    return total
