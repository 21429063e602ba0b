"""Log-linear attention: the past in blocks that double, each with a weight of its own.

Token i and an earlier token j of its document are at the level bit_length(i xor j), where i and j
count the tokens of the document: 0 for j = i, and at level n the left half of the aligned block of
2^n tokens in whose right half i lies. Each level is plain linear attention that starts afresh with
every block, written by left halves and read by right halves (arXiv:2506.04761).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx.ops.linear.api import linear_attention
from lcx.ops.loops import summed_wide


def log_linear_attention(query: jax.Array, key: jax.Array, value: jax.Array, levels: jax.Array,
                         index: jax.Array, *, state: jax.Array | None = None,
                         start: jax.Array | None = None, **options
                         ) -> tuple[jax.Array, jax.Array | None]:
    """o_i = sum_{j<=i} levels_i[bit_length(i xor j)] (q_i . transported k_j) v_j.

    query, key [B,T,H,K], value [B,T,H,V], levels [B,T,H,N], index [1 or B,T] tokens before each in
    its document; options, and start [B,T], as `linear_attention` (log_decay, erase, beta, form,
    chunk). state [N-1,B,H,K,V] of a stream: N levels serve 2^(N-1) tokens, and what lies beyond
    is NaN. Without a state only the levels that T tokens can reach are computed, and none is
    returned. Returns out [B,T,H,V], at least float32.
    """
    batch, length, heads, size = query.shape
    top = levels.shape[-1]
    count = top - 1 if state is not None else min(top - 1, max(length - 1, 0).bit_length())
    dtype = jnp.promote_types(jnp.result_type(query, value), jnp.float32)
    wide = lambda x: x.astype(dtype)
    index = jnp.broadcast_to(index, (batch, length))
    levels = wide(levels)
    own = jnp.sum(wide(query) * wide(key), -1) * levels[..., 0]
    out = own[..., None] * wide(value)
    begins = jnp.zeros((1, 1), bool) if start is None else start

    def level(out, part):
        number, weight, state = part
        half = (index >> (number - 1)) & 1
        fresh = begins | (index & ((1 << number) - 1) == 0)
        pick = lambda x, which: jnp.where((half == which)[..., None, None], x, 0)
        read, state = linear_attention(
            pick(query * weight[..., None].astype(query.dtype), 1), pick(key, 0), value,
            start=fresh, state=state, **options)
        return out + wide(read), state

    numbers = jnp.arange(1, count + 1)
    weights = jnp.moveaxis(levels[..., 1 : count + 1], -1, 0)
    if count:
        empty = jnp.zeros((count, batch, heads, size, value.shape[-1]), dtype)
        levels = numbers, weights, empty if state is None else state
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), levels)
        body = jax.checkpoint(summed_wide(level, out, one))
        out, after = jax.lax.scan(body, out, levels)
    else:
        after = state
    served = (index < 1 << (top - 1))[..., None, None]
    return jnp.where(served, out, jnp.nan), None if state is None else after


def level_of(queries: jax.Array, keys: jax.Array, count: int) -> jax.Array:
    """bit_length(i xor j) of indices [...,T] and [...,S], at most `count`: [...,T,S]."""
    apart = queries[..., :, None] ^ keys[..., None, :]
    return sum(((apart >> bit) > 0).astype(jnp.int32) for bit in range(count))
