"""The element-wise linear recurrence h_t = a_t * (R_t h_{t-1}) + u_t, by four routes."""

import jax
import jax.numpy as jnp

from lcx.ops.scan import transition as transitions

FORMS = ("scan", "chunked", "associative", "quadratic")


def diagonal_scan(
    log_decay: jax.Array,
    value: jax.Array,
    *,
    rotation: jax.Array | None = None,
    state: jax.Array | None = None,
    start: jax.Array | None = None,
    form: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs h_t = exp(log_decay_t) * (R_t h_{t-1}) + value_t per channel: LRU, RG-LRU, HGRN.

    Rotate, then decay (transport semantics): depends only on the tokens in between even where the
    two gates of a rotated pair differ, which makes the transition of a pair a 2 x 2 matrix.

    Args:
      log_decay: [B,T,...,D], <= 0; -inf forgets all (not in the quadratic form). Broadcasts
        against value, so that [B,T,H,1] shares a gate.
      value: [B,T,...,D].
      rotation: [B,T,...,D/2], radians added at each token; channel c pairs with c + D/2.
      state: [B,...,D], the h before the first token (zeros by default).
      start: [B,T] (or [1,T]) bool, true where a segment starts: h is zeroed before that token.
      form: "scan" (token by token), "chunked" (all chunks at once, then their states),
        "associative" (logarithmic depth) or "quadratic" ([B,T,T,D] weights: for tests and for
        tiny T). None takes "scan" on a CPU and "chunked" elsewhere.

    Returns:
      h [B,T,...,D] and the last h, both at least float32.

    Raises:
      ValueError: an unknown form, a shape that does not fit, or a rotation in the quadratic form.
    """
    if form is None:
        form = "scan" if jax.default_backend() == "cpu" else "chunked"
    if form not in FORMS:
        raise ValueError(f"form is {form!r}: choose one of {', '.join(FORMS)}")
    _check_shapes(log_decay, value, rotation, state, start)
    dtype = jnp.promote_types(jnp.result_type(log_decay, value), jnp.float32)
    value = value.astype(dtype)
    log_decay = jnp.broadcast_to(log_decay.astype(dtype), value.shape)
    state = jnp.zeros_like(value[:, 0]) if state is None else state.astype(dtype)
    if value.shape[1] == 0:
        return value, state
    if start is not None:
        start = jnp.broadcast_to(start, value.shape[:2])
        start = start.reshape(*start.shape, *[1] * (value.ndim - 2))
    if form == "quadratic":
        if rotation is not None:
            raise ValueError("the quadratic form has no rotation: choose form='scan' or 'chunked'")
        return _quadratic(log_decay, value, state, start)
    # the reset is a factor 0, never a log gate of -inf: nothing here takes a difference of logs
    decay = jnp.exp(log_decay)
    decay = decay if start is None else jnp.where(start, 0, decay)
    if value.shape[1] == 1:
        form = "scan"
    kind = transitions.Diagonal if rotation is None else transitions.Pairs
    step = kind.of_gates(decay, None if rotation is None else rotation.astype(dtype))
    out = ROUTES[form](step, kind.split(value), kind.split(state))
    out = kind.join(out)
    return out, out[:, -1]


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


def _quadratic(log_decay, value, state, start):
    """Weights exp(A_i - A_j) of all pairs of one segment, A the summed log gates."""
    length = value.shape[1]
    document = jnp.zeros((1, length) + (1,) * (value.ndim - 2), jnp.int32)
    if start is not None:
        document = jnp.cumsum(start.astype(jnp.int32), axis=1)
        log_decay = jnp.where(start, 0, log_decay)
    total = jnp.cumsum(log_decay, axis=1)
    order = jnp.tri(length, dtype=bool).reshape(1, length, length, *[1] * (value.ndim - 2))
    mask = order & (document[:, :, None] == document[:, None])
    gap = jnp.where(mask, total[:, :, None] - total[:, None], 0)
    out = jnp.sum(jnp.where(mask, jnp.exp(gap), 0) * value[:, None], axis=2)
    out = out + jnp.where(document == 0, jnp.exp(total), 0) * state[:, None]
    return out, out[:, -1]


def _check_shapes(log_decay, value, rotation, state, start) -> None:
    if value.ndim < 3 or log_decay.ndim != value.ndim:
        raise ValueError(f"value {value.shape} and log_decay {log_decay.shape} must be [B,T,...,D]")
    if any(a not in (1, b) for a, b in zip(log_decay.shape, value.shape)):
        raise ValueError(f"log_decay {log_decay.shape} does not broadcast to {value.shape}")
    if rotation is not None:
        wanted = (*value.shape[:-1], value.shape[-1] // 2)
        if value.shape[-1] % 2 or rotation.shape != wanted:
            raise ValueError(f"rotation {rotation.shape} must be {wanted}, an angle per pair")
    if state is not None and state.shape != (value.shape[0], *value.shape[2:]):
        raise ValueError(f"state {state.shape} must be {(value.shape[0], *value.shape[2:])}")
    if start is not None and (
        start.shape not in (value.shape[:2], (1, value.shape[1])) or start.dtype != jnp.bool_
    ):
        raise ValueError(f"start {start.shape} {start.dtype} must be bool {value.shape[:2]}")
