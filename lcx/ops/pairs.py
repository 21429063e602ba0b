"""Weights between pairs of tokens: what every quadratic form shares, softmax or linear.

`Queries` and `Keys` carry all that a pair's weight depends on; keys are kept *raw*, so that a
cache, a tile and a later change of frequencies agree. Each lane type has its meaning here, once;
maps of single queries and keys are in `endpoint`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.integral import Integral, fallen, integrate, separable_gap
from lcx.ops import endpoint, untied
from lcx.ops.decayed import decayed_scores
from lcx.ops.householder import householder_scores
from lcx.ops.loops import summed_wide
from lcx.types import precise, wide


@struct.dataclass
class Integrals:
    """Running sums of a layer's gates: bias [B,T,H] of the separable increments together, decay
    [B,T,N,K] of a diagonal transport; None where there is none."""

    bias: Integral | None = None
    decay: Integral | None = None


@struct.dataclass
class Queries:
    """query [B,T,H,K]; seq; integral; path: what the transport says of these tokens (`path_of`);
    extras: what pairwise biases do (`extras_of`).

    slot: the key slot of the first query; queries occupy consecutive slots (path transports).
    own: the product [B,T,H] of a token with itself, where that is not query times key; [B,T,H,R]:
    with each of the R keys of its token, which have one order.
    """

    query: jax.Array
    seq: L.Sequence
    integral: Integrals = Integrals()
    path: L.Householder | L.ContentRotation | untied.Untied | None = None
    extras: tuple = ()
    slot: jax.Array | int = 0
    own: jax.Array | None = None


@struct.dataclass
class Keys:
    """ALL key-side data, raw: key [B,S,N,K], value [B,S,N,V], seq, integral, path, extras.

    One pytree to cache, to tile or to send round a ring. N key heads divide the H query heads.
    """

    key: jax.Array
    value: jax.Array
    seq: L.Sequence
    integral: Integrals = Integrals()
    path: L.Householder | L.ContentRotation | untied.Untied | None = None
    extras: tuple = ()


def mask(queries: L.Sequence, keys: L.Sequence, *, causal: bool = True,
         window: int | None = None, sinks: int = 0) -> jax.Array:
    """Which keys a query may read: [B,T,S] bool, by arrival order and segment, never by slot.

    sinks: so many first tokens of a document are read from anywhere behind them.
    """
    query_order, key_order = queries.order[..., :, None], keys.order[..., None, :]
    allowed = key_order >= 0
    if causal:
        allowed &= key_order <= query_order
    if window is not None:
        near = key_order > query_order - window
        allowed &= near | (keys.index < sinks)[..., None, :] if sinks else near
        if not causal:
            allowed &= key_order < query_order + window
    if queries.segment is not None:
        allowed &= queries.segment[..., :, None] == keys.segment[..., None, :]
    return allowed


def scores(queries: Queries, keys: Keys, transport, rotary_dim: int) -> jax.Array:
    """Transported inner products [B,H,T,S], wide and unscaled.

    A transport acts on the leading `rotary_dim` channels; the rest is compared as it is.
    """
    transport, query, key = endpoint.in_basis(transport, queries.query, keys.key)
    match transport:
        case None:
            return inner(query, key)
        case L.Rotation() | L.ContentRotation() | L.FeatureMap():
            return inner(*endpoint.mapped(queries, keys, transport, rotary_dim))
        case L.Piecewise():
            return _piecewise(queries, keys, transport, rotary_dim)
        case L.Diagonal():
            if transport.rotation is not None:
                query, key = endpoint.mapped(queries.replace(query=query), keys.replace(key=key),
                                             transport.rotation, rotary_dim)
            width, heads = transport.increment.shape[-1], query.shape[2]
            decayed = decayed_scores(
                wide(query[..., :width]), wide(repeat_heads(key[..., :width], heads)),
                queries.integral.decay, keys.integral.decay, offset=queries.slot)
            if width == query.shape[-1]:
                return decayed
            return decayed + inner(query[..., width:], key[..., width:])
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
        case untied.Untied():
            return untied.scores(queries, query, repeat_heads(key, query.shape[2]), keys, transport)
    raise NotImplementedError(f"no pair weights for the transport {type(transport).__name__}")


def log_bias(queries: Queries, keys: Keys, biases: tuple, allowed: jax.Array,
             scale: float) -> jax.Array | None:
    """Sum of the bias lanes [B,H,T,S] (or broadcastable), wide; None where there is none."""
    total, integrated = None, False
    extras = iter(zip(queries.extras, keys.extras))
    for bias in biases:
        match bias:
            case L.Separable():
                if integrated:
                    continue  # all separable increments were summed before they were integrated
                integrated = True
                # future pairs would be positive; they are masked, so keep them harmless
                term = fallen(separable_gap(queries.integral.bias, keys.integral.bias))
            case L.Toeplitz():
                distance = pair_distance(queries.seq, keys.seq)
                term = jnp.moveaxis(wide(bias.kernel(bias.params, distance)), -1, 1)
            case L.Rowwise():
                distance = pair_distance(queries.seq, keys.seq)
                row = queries.seq.ids[..., :, None, 0]
                term = jnp.moveaxis(wide(bias.kernel(bias.params, distance, row)), -1, 1)
            case L.Pairwise():
                heads = queries.query.shape[2]
                tile = L.Tile(wide(queries.query), wide(repeat_heads(keys.key, heads)),
                              allowed, queries.seq.ids, keys.seq.ids, scale, *next(extras))
                term = bias.kernel(bias.params, tile)
            case _:
                raise NotImplementedError(f"no pair bias for {type(bias).__name__}")
        total = term if total is None else total + term
    return total


def pair_distance(queries: L.Sequence, keys: L.Sequence) -> jax.Array:
    """id_i - id_j on the first axis: [B,T,S]."""
    return queries.ids[..., :, None, 0] - keys.ids[..., None, :, 0]


def integrals(lanes: L.Lanes, before: Integrals | None = None) -> Integrals:
    """The integrals of all gates of a layer, continuing those `before` these tokens."""
    before = before or Integrals()
    increments = [b.increment for b in lanes.bias if isinstance(b, L.Separable)]
    bias = integrate(sum(increments), before.bias) if increments else None
    if not isinstance(lanes.transport, L.Diagonal):
        return Integrals(bias)
    return Integrals(bias, integrate(lanes.transport.increment, before.decay))


def extras_of(lanes: L.Lanes) -> tuple:
    """What each pairwise bias says of each token, in their order (None where it says nothing)."""
    return tuple(bias.extras for bias in lanes.bias if isinstance(bias, L.Pairwise))


def path_of(transport) -> L.Householder | L.ContentRotation | untied.Untied | None:
    """What a transport says of each token that must be kept with its key."""
    match transport:
        case L.Householder():
            return transport
        case L.ContentRotation():
            return transport.replace(step=None)
        case untied.Untied():
            return transport.replace(rotation=path_of(transport.rotation))
    return None


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


def table_values(weights: jax.Array, queries: L.Sequence, keys: L.Sequence,
                 lane: L.ValueTable) -> jax.Array:
    """sum_j w_ij table[bucket(R, id_i - id_j)]: weights [B,H,T,S], table [R,V] -> [B,T,H,V].

    Weights are summed by bucket, one after another: no array of pairs and channels is held.
    """
    bucket = lane.bucket(lane.table.shape[0], pair_distance(queries, keys))[:, None]
    sums = jax.lax.map(lambda r: jnp.sum(jnp.where(bucket == r, weights, 0.0), -1),
                       jnp.arange(lane.table.shape[0]))
    return precise("rbht,rv->bthv", sums, wide(lane.table))


def repeat_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B,S,N,...] -> [B,S,H,...]: each key head once per query head of its group."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def over_queries(run: Callable, tokens: Any, chunk: int) -> jax.Array:
    """run(tokens, first) for `chunk` tokens after another, first their number: [B,T,...].

    tokens: a pytree of arrays [.,T,...]; run returns [B,chunk,...]. Each chunk is recomputed in
    the backward pass, so that memory is linear in T; what all chunks read (keys, values) has its
    gradient summed over them in float32.
    """
    length = jax.tree.leaves(tokens)[0].shape[1]
    if length <= chunk:
        return run(tokens, 0)
    count = -(-length // chunk)

    def split(a):  # [B,T,...] -> [count,B,chunk,...]; padded tokens repeat the last one
        widths = [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (a.ndim - 2)
        a = jnp.pad(a, widths, mode="edge")
        return jnp.moveaxis(a.reshape(a.shape[0], count, chunk, *a.shape[2:]), 1, 0)

    pieces = (jax.tree.map(split, tokens), jnp.arange(count) * chunk)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), pieces)
    body = jax.checkpoint(summed_wide(lambda piece: run(*piece), one))
    out = jax.lax.map(body, pieces)
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :length]


def _piecewise(queries, keys, transport: L.Piecewise, rotary_dim: int) -> jax.Array:
    rotation, params = transport.rotation, transport.params
    query_ids, key_ids = queries.seq.ids, keys.seq.ids
    piece = transport.select(params, query_ids[..., :, None, 0], key_ids[..., None, :, 0])
    total = 0.0
    for number, (query_map, key_map) in enumerate(transport.pieces):
        turn = lambda x, ids: endpoint.rotate(x, L.phase(rotation, ids), rotary_dim,
                                              rotation.interleaved)
        query = turn(queries.query, query_map(params, query_ids))
        key = turn(keys.key, key_map(params, key_ids))
        product = inner(endpoint.amplified(query, rotation), key)
        total = jnp.where((piece == number)[:, None], product, total)
    return total
