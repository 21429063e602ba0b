"""Stick-breaking attention in chunks of queries: a key breaks off a share of what later ones left.

a_ij = sigmoid(z_ij) prod_{j<t<i} (1 - sigmoid(z_it)) over the strict past (arXiv:2410.17980), as
exp of z - softplus(z) - sum of the later softplus(z), so that nothing underflows early.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.ops.attention import local, reference

CHUNK = 128


def attend(queries: pairs.Queries, keys: pairs.Keys, own: jax.Array, lanes: L.Lanes, *,
           rotary_dim: int, scale: float, remainder: bool, window: int | None = None,
           chunk: int | None = None) -> jax.Array:
    """Queries [B,T,H,K] over keys [B,S,N,K] and values [B,S,N,V] -> [B,T,H,V], dtype of values.

    Keys lie in the order of their arrival. own [B,T,N,V]: the queries' own values, which get the
    share 1 - sum_j a_ij if `remainder`; else it is dropped, and a first token reads nothing.
    """
    heads, value = queries.query.shape[2], keys.value
    if isinstance(lanes.value, L.ValueRotation):
        value = endpoint.turn_values(value, keys.seq, lanes.value)
        own = endpoint.turn_values(own, queries.seq, lanes.value)

    keys = keys.replace(value=value)

    def near(part, keys, rows):
        temperature, own = rows
        logits, allowed = reference.logits(
            part, keys, lanes.replace(temperature=temperature), rotary_dim=rotary_dim,
            scale=scale, causal=True, window=window)
        past = (allowed & (keys.seq.order[..., None, :] < part.seq.order[..., :, None]))[:, None]
        kept = jnp.where(past, jax.nn.softplus(logits), 0.0)
        later = jnp.cumsum(kept[..., ::-1], axis=-1)[..., ::-1]  # of this key and all later ones
        weights = jnp.where(past, jnp.exp(jnp.where(past, logits, 0.0) - later), 0.0)
        out = pairs.mixed(weights, keys.value)
        if isinstance(lanes.value, L.ValueTable):
            out += pairs.table_values(weights, part.seq, keys.seq, lanes.value)
        if remainder:  # prod_t (1 - sigmoid(z_it)), which 1 - sum would round away
            rest = jnp.swapaxes(jnp.exp(-later[..., 0]), 1, 2)[..., None]
            out += rest * pairs.repeat_heads(own, heads)
        return out

    def tile(tokens, first):
        part, *rows = tokens
        part = part.replace(seq=part.seq.replace(length=queries.seq.length),
                            slot=queries.slot + first)
        return near(part, keys, rows)

    rows = (lanes.temperature, own)
    cut = local.plan(queries, keys, lanes, chunk=chunk or CHUNK, causal=True, window=window)
    if cut is not None:
        out = local.over_windows(near, queries, keys, rows, **cut)
    else:
        tokens = queries.replace(seq=queries.seq.replace(length=None), slot=None)
        out = pairs.over_queries(tile, (tokens, *rows), chunk or CHUNK)
    if isinstance(lanes.value, L.ValueRotation):
        out = endpoint.turn_values(out, queries.seq, lanes.value, sign=-1)
    return out.astype(value.dtype)
