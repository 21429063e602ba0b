"""Transports that are maps of single queries, keys and values, each by its own token's place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.types import wide

TRANSPORTS = (L.Rotation, L.ContentRotation, L.FeatureMap)  # what `mapped` knows


def mapped(queries: Any, keys: Any, transport, rotary_dim: int) -> tuple[jax.Array, jax.Array]:
    """`pairs.Queries` and `pairs.Keys` -> query [B,T,H,K'] and key [B,S,N,K'], so that the inner
    product of the two is the transported one."""
    query, key = queries.query, keys.key
    match transport:
        case L.Rotation():
            turn = lambda x, seq: rotate(x, L.phase(transport, seq.ids), rotary_dim,
                                         transport.interleaved)
            return amplified(turn(query, queries.seq), transport), turn(key, keys.seq)
        case L.ContentRotation():
            groups = query.shape[2] // queries.path.phase.shape[2]
            turn = lambda x, phase: rotate(x, phase, rotary_dim, transport.interleaved)
            return (turn(query, jnp.repeat(queries.path.phase, groups, 2)),
                    turn(key, keys.path.phase))
        case L.FeatureMap():
            def apply(function, x, seq):
                new = function(transport.params, wide(x[..., :rotary_dim]), seq.ids)
                return jnp.concatenate([new.astype(x.dtype), x[..., rotary_dim:]], -1)
            return apply(transport.query, query, queries.seq), apply(transport.key, key, keys.seq)
    raise NotImplementedError(f"{type(transport).__name__} is no map of single tokens")


def in_basis(transport, *vectors: jax.Array) -> tuple[Any, ...]:
    """A transport without its basis, and vectors [...,K] of tokens in that basis: the coordinates
    that a `Diagonal` fades. Of any other transport, all as they are."""
    if not isinstance(transport, L.Diagonal) or transport.basis is None:
        return transport, *vectors
    width = transport.increment.shape[-1]

    def seen(x):
        return jnp.concatenate([transport.basis(wide(x[..., :width])).astype(x.dtype),
                                x[..., width:]], -1)

    return transport.replace(basis=None), *map(seen, vectors)


def amplified(query: jax.Array, rotation: L.Rotation) -> jax.Array:
    """The factor g of cos and sin on both sides, as g^2 on the rotated channels of the query."""
    if rotation.amplitude is None:
        return query
    width = 2 * rotation.frequency.shape[-1]
    gain = (rotation.amplitude ** 2).astype(query.dtype)
    return jnp.concatenate([query[..., :width] * gain, query[..., width:]], -1)


def rotate(x: jax.Array, angle: jax.Array, offered: int, interleaved: bool = False) -> jax.Array:
    """Turn channel pairs of x [B,T,H,K] by angle [B,T,P], or [B,T,H,P] by head; wide inside.

    Channels beyond 2P stay. Raises ValueError where 2P is more than the `offered` channels.
    """
    width = 2 * angle.shape[-1]
    if width > offered:
        raise ValueError(f"the rotation turns {width} channels, the mixer offers {offered}")
    turned, rest = wide(x[..., :width]), x[..., width:]
    angle = angle[..., None, :] if angle.ndim == 3 else angle
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], -1)
        turned = turned.reshape(*turned.shape[:-2], width)
    else:
        first, second = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


def turn_values(value: jax.Array, seq: L.Sequence, lane: L.ValueRotation | None,
                sign: int = 1) -> jax.Array:
    """Values [B,S,N,V] turned by their own ids; sign=-1 turns outputs [B,T,H,V] back."""
    if lane is None:
        return value
    angle = sign * L.phase(lane.rotation, seq.ids)
    return rotate(value, angle, value.shape[-1], lane.rotation.interleaved)


def mapped_dim(transport, site: L.Site) -> int:
    """Channels of queries and keys after a transport: K' of K."""
    if not isinstance(transport, L.FeatureMap):
        return site.key_dim
    x = jax.ShapeDtypeStruct((1, 1, site.num_kv_heads, site.rotary_dim), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1, 1), jnp.float32)
    new = jax.eval_shape(transport.key, transport.params, x, ids)
    return new.shape[-1] + site.key_dim - site.rotary_dim
