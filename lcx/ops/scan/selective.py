"""The selective scan of Mamba: a state per channel whose keys and queries all channels share.

[T,D,N] arrays of states or gates are never held: tokens go one after another through the state
[D,N], and the backward pass keeps one state per chunk of tokens.
"""

import jax
import jax.numpy as jnp

from lcx.types import precise

CHUNK = 64


def selective_scan(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    step: jax.Array,
    rate: jax.Array,
    *,
    fade: jax.Array | None = None,
    state: jax.Array | None = None,
    start: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """h_t = exp(step_t rate + fade_t) h_{t-1} + key_t value_t, y_t = query_t . h_t, per channel.

    query, key [B,T,N] (C and B of arXiv:2312.00752); value, step [B,T,D], value already times its
    step; rate [D,N] <= 0; fade [B,T,D] <= 0, a further log gate; state [B,D,N] (zeros if None);
    start [B,T] (or [1,T]) bool: the state is zeroed before that token. chunk: tokens between two
    states that the backward pass keeps. Returns y [B,T,D] and the last state, at least float32.
    """
    dtype = jnp.promote_types(jnp.result_type(value, step), jnp.float32)
    batch, length, channels = value.shape
    rate = rate.astype(dtype)
    if state is None:
        state = jnp.zeros((batch, channels, query.shape[-1]), dtype)
    if start is not None:
        start = jnp.broadcast_to(start, (batch, length))

    def token(state, now):
        query, key, value, step, fade, start = now
        gate = step[..., None] * rate
        gate = gate if fade is None else gate + fade[..., None]
        decay = jnp.exp(gate)
        decay = decay if start is None else jnp.where(start[:, None, None], 0, decay)
        state = decay * state + value[..., None] * key[:, None]
        return state, precise("bdn,bn->bd", state, query)

    @jax.checkpoint
    def tokens(state, piece):
        return jax.lax.scan(token, state, piece, unroll=4)

    size = min(chunk, max(1, length))
    whole = length // size * size
    wide = lambda x: x if x.dtype == bool else x.astype(dtype)
    rows = jax.tree.map(lambda x: jnp.moveaxis(wide(x), 1, 0),
                        (query, key, value, step, fade, start))
    split = lambda x: x[:whole].reshape(-1, size, *x.shape[1:])
    state, out = jax.lax.scan(tokens, state.astype(dtype), jax.tree.map(split, rows))
    out = out.reshape(whole, batch, channels)
    if whole < length:
        state, rest = tokens(state, jax.tree.map(lambda x: x[whole:], rows))
        out = jnp.concatenate([out, rest])
    return jnp.moveaxis(out, 0, 1), state
