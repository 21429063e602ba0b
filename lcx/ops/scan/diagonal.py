"""The element-wise linear recurrence h_t = a_t * (R_t h_{t-1}) + u_t, by four routes."""

import jax
import jax.numpy as jnp

from lcx.ops.scan.routes import solve
from lcx.ops.scan.transition import Diagonal, Pairs

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
    kind = Diagonal if rotation is None else Pairs
    step = kind.of_gates(decay, None if rotation is None else rotation.astype(dtype))
    out = kind.join(solve(form, step, kind.split(value), kind.split(state)))
    return out, out[:, -1]


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
