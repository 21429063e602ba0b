"""The scale in which a recurrence with exponential inputs is held, so that nothing overflows.

S_t = e^f_t S_{t-1} + e^i_t u_t is kept times e^-m_t, m_t = max(f_t + m_{t-1}, i_t): the largest
exponent so far. Both gates are then at most 1, and what is read of S e^-m as a quotient does not
depend on m, which therefore takes no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lcx.types import wide


class Frame(NamedTuple):
    """level m, decay f + m_{t-1} - m and write i - m of each token, [B,T,...] and wide; last
    [B,...]: the level that the next call starts from."""

    level: jax.Array
    decay: jax.Array
    write: jax.Array
    last: jax.Array


def frame_of(log_forget: jax.Array, log_input: jax.Array, *, before: jax.Array | None = None,
             start: jax.Array | None = None, fresh: float = 0.0) -> Frame:
    """The frame of log gates f and i [B,T,...]; before [B,...]: the level of the last call.

    fresh: the level before a document; start [B,T] bool: where one begins, whose own decay is 0.
    """
    forget, write = map(wide, jnp.broadcast_arrays(log_forget, log_input))
    if before is None:
        before = jnp.full_like(write[:, 0], fresh)
    if start is None:
        start = jnp.zeros((1, forget.shape[1]), bool)
    start = start.reshape(*start.shape, *[1] * (forget.ndim - 2))
    fixed = jax.lax.stop_gradient
    gain = jnp.where(start, -jnp.inf, fixed(forget))  # a document does not know the level before
    least = jnp.where(start, jnp.maximum(fixed(write), fixed(forget) + fresh), fixed(write))
    least = least.at[:, 0].set(jnp.maximum(least[:, 0], gain[:, 0] + before))
    combine = lambda early, late: (early[0] + late[0], jnp.maximum(early[1] + late[0], late[1]))
    _, level = jax.lax.associative_scan(combine, (gain, least), axis=1)
    level = fixed(level)
    previous = jnp.concatenate([before[:, None], level[:, :-1]], 1)
    # levels first: they are close, so that their difference is exact and a gate near 1 survives
    decay = jnp.where(start, 0.0, forget + (previous - level))
    return Frame(level, decay, write - level, level[:, -1])
