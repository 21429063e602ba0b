"""Three routes to h_t = M_t h_{t-1} + u_t; the gradient is the same recurrence run backwards.

Differentiating a route would keep its partial products and retrace its tree; the adjoint
  l_t = g_t + M_{t+1}^T l_{t+1},  du = l,  dM_t = l_t h_{t-1}^T
needs h alone, and takes the same route.
"""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def solve(form: str, step, value: jax.Array, state: jax.Array) -> jax.Array:
    """h [B,T,...] from a transition pytree over [B,T,...], value [B,T,...] and state [B,...]."""
    return ROUTES[form](step, value, state)


def _forward(form, step, value, state):
    out = ROUTES[form](step, value, state)
    return out, (step, state, out)


def _backward(form, residuals, cotangent):
    step, state, out = residuals
    transposed = step.transpose()
    later = jax.tree.map(lambda x: jnp.roll(jnp.flip(x, 1), 1, axis=1), transposed)
    adjoint = ROUTES[form](later, jnp.flip(cotangent, 1), jnp.zeros_like(state))
    adjoint = jnp.flip(adjoint, 1)
    before = jnp.concatenate([state[:, None], out[:, :-1]], axis=1)
    first = jax.tree.map(lambda x: x[:, 0], transposed)
    return step.outer(adjoint, before), adjoint, first.apply(adjoint[:, 0])


solve.defvjp(_forward, _backward)


def _sequential(step, value, state):
    def body(state, token):
        step, value = token
        state = step.apply(state) + value
        return state, state

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (step, value))
    unroll = min(8, value.shape[1])
    return jnp.moveaxis(jax.lax.scan(body, state, tokens, unroll=unroll)[1], 0, 1)


def _associative(step, value, state):
    def combine(early, late):
        return late[0].compose(early[0]), late[0].apply(early[1]) + late[1]

    step, value = jax.lax.associative_scan(combine, (step, value), axis=1)
    return value + step.apply(state[:, None])


def _chunked(step, value, state):
    """About sqrt(T) chunks side by side from a zero state, then their states, then both added."""
    length = value.shape[1]
    size = max(1, round(length**0.5))
    chunks = -(-length // size)

    def split(x):  # [B,T,...] -> [C,B,N,...]; the padding comes after every real token
        x = jnp.pad(x, [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 2, 0)

    def inside(carry, token):
        total, local = carry
        step, value = token
        carry = step.compose(total), step.apply(local) + value
        return carry, carry

    steps, values = jax.tree.map(split, (step, value))
    first = jax.tree.map(lambda x: x[0], (steps, values))
    rest = jax.tree.map(lambda x: x[1:], (steps, values))
    last, inner = jax.lax.scan(inside, first, rest)

    def between(state, chunk):
        step, value = chunk
        return step.apply(state) + value, state

    ends = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), last)
    before = jnp.moveaxis(jax.lax.scan(between, state, ends)[1], 0, 1)  # [B,N,...]
    total, local = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, inner)
    out = jnp.moveaxis(total.apply(before[None]) + local, 0, 2)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]


ROUTES = {"scan": _sequential, "associative": _associative, "chunked": _chunked}
