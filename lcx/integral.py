"""The running sum of a gate's increments: how a separable bias is integrated over a stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx.types import wide


@struct.dataclass
class Integral:
    """A running sum of increments, exact over long streams: coarse (int32, 1/256) + fine.

    A cumulative float32 gate loses single tokens (0.5% at 131k); here the coarse part is integer
    arithmetic (which may wrap: only differences are read) and the fine part stays small.
    """

    coarse: jax.Array
    fine: jax.Array


_COARSE = 256.0


def integrate(increment: jax.Array, before: Integral | None = None) -> Integral:
    """Integral [B,T,...] of increments [B,T,...], continuing `before` [B,...]."""
    increment = wide(increment)
    coarse = jax.lax.stop_gradient(jnp.round(increment * _COARSE)).astype(jnp.int32)
    fine = increment - coarse / _COARSE
    total = Integral(jnp.cumsum(coarse, axis=1), jnp.cumsum(fine, axis=1))
    if before is not None:
        total = Integral(total.coarse + before.coarse[:, None], total.fine + before.fine[:, None])
    return total


def fallen(gap: jax.Array) -> jax.Array:
    """A gap between log gates with whatever belongs to a masked, future pair kept finite.

    Gates only fall, so a pair that counts rises by rounding at most; its slope must survive that,
    and `minimum(gap, 0)` would cut it. What rises by more than 1 is of the future.
    """
    return jnp.where(gap > 1.0, 0.0, gap)


def gap(later: Integral, earlier: Integral) -> jax.Array:
    """Sum of increments between two tokens, element by element (shapes that broadcast)."""
    return (later.coarse - earlier.coarse) / _COARSE + (later.fine - earlier.fine)


def separable_gap(query: Integral, key: Integral) -> jax.Array:
    """Sum of increments after key j up to query i: [B,T,H], [B,S,H] -> [B,H,T,S]."""
    pair = lambda i, j: jnp.swapaxes(i, 1, 2)[..., :, None] - jnp.swapaxes(j, 1, 2)[..., None, :]
    return pair(query.coarse, key.coarse) / _COARSE + pair(query.fine, key.fine)
