"""The operands of linear attention as one pytree, so that both forms share their preparation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Inputs(NamedTuple):
    """Per-token operands, batch first; an absent field is None (an empty pytree).

    query, key, erase [B,T,H,K]; value [B,T,H,V]; log_decay [B,T,H,1 or K]; beta [B,T,H];
    start [B,T] bool; rotation [B,T,H,P] of channel pairs (m, m + P); write [B,T,H,K]: along what
    the erase acts, erase itself if None. key None means the delta rule's own write, beta * write.
    """

    query: jax.Array
    key: jax.Array | None
    value: jax.Array
    log_decay: jax.Array | None
    erase: jax.Array | None
    beta: jax.Array | None
    start: jax.Array | None
    rotation: jax.Array | None = None
    write: jax.Array | None = None

    @property
    def state_dtype(self) -> jnp.dtype:
        """At least float32: what gates, states and accumulators are held in."""
        return jnp.promote_types(jnp.result_type(self.query, self.value), jnp.float32)
