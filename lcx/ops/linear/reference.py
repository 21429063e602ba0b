"""The linear recurrence token by token: the naive twin of `chunked`, and the step of decoding."""

import jax
import jax.numpy as jnp

from lcx.ops.linear.inputs import Inputs
from lcx.types import precise


def recurrent(inputs: Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs [B,T,H,*] and state [B,H,K,V] -> out [B,T,H,V] and state, all in state.dtype."""

    def step(state, token: Inputs):
        if token.start is not None:
            state = jnp.where(token.start[:, None, None, None], 0, state)
        if token.rotation is not None:  # rotate, then decay, then erase
            state = _turn(state, token.rotation)
        if token.log_decay is not None:
            state = jnp.exp(token.log_decay)[..., None] * state
        write = token.value
        along = token.erase if token.write is None else token.write
        if token.erase is not None:
            read = precise("bhk,bhkv->bhv", token.erase, state)
            erased = token.beta[..., None] * read
            if token.key is None:
                write = token.beta[..., None] * write - erased
            else:
                state = state - along[..., None] * erased[..., None, :]
        key = along if token.key is None else token.key
        state = state + key[..., None] * write[..., None, :]
        return state, precise("bhk,bhkv->bhv", token.query, state)

    def promote(x):
        return x if x.dtype == bool else x.astype(state.dtype)

    tokens = jax.tree.map(lambda x: jnp.moveaxis(promote(x), 1, 0), inputs)
    state, out = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(out, 0, 1), state


def _turn(state: jax.Array, angle: jax.Array) -> jax.Array:
    """Channel pairs (m, m + P) of state [B,H,K,V] by angle [B,H,P]."""
    pairs = angle.shape[-1]
    first, second, rest = jnp.split(state, (pairs, 2 * pairs), axis=-2)
    cos, sin = jnp.cos(angle)[..., None], jnp.sin(angle)[..., None]
    turned = [first * cos - second * sin, first * sin + second * cos, rest]
    return jnp.concatenate(turned, -2)
