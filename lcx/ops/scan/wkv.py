"""RWKV-4's average of values (arXiv:2305.13048), channel by channel.

  o_i = sum_{j<=i} e^l_ij v_j / sum_{j<=i} e^l_ij
  l_ij = k_j - (i - 1 - j) w + (further log gates over (j,i]) for j < i,  l_ii = u + k_i

`wkv` holds numerator and denominator times e^-m (`frame_of`), each channel at a scale of its own;
`wkv_pairs` weighs all pairs, for log weights that have no recurrence, and is its naive twin.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx.ops.scan.diagonal import diagonal_scan
from lcx.ops.scan.frame import frame_of
from lcx.types import wide, wide_dtype

NEVER = -1e30  # the level of a sum of nothing


@struct.dataclass
class WkvState:
    """memory [B,H,K,2]: numerator and denominator times e^-level; level [B,H,K]. All wide."""

    memory: jax.Array
    level: jax.Array


def init_wkv(batch: int, heads: int, dim: int) -> WkvState:
    """Nothing remembered."""
    return WkvState(jnp.zeros((batch, heads, dim, 2), wide_dtype()),
                    jnp.full((batch, heads, dim), NEVER, wide_dtype()))


def wkv(key: jax.Array, value: jax.Array, rate: jax.Array, bonus: jax.Array,
        fade: jax.Array | float = 0.0, *, start: jax.Array | None = None,
        state: WkvState | None = None, form: str | None = None) -> tuple[jax.Array, WkvState]:
    """key, value [B,T,H,K]; rate w > 0, bonus u [H,K] -> o [B,T,H,K], wide, and the next state.

    fade (broadcastable to key, <= 0): further log gates of each token, zero at segment starts;
    start [B,T] bool: where a segment begins; form: of `diagonal_scan`.
    """
    key, value = wide(key), wide(value)
    state = init_wkv(key.shape[0], *key.shape[2:]) if state is None else state
    start = jnp.zeros((1, key.shape[1]), bool) if start is None else start
    fade = jnp.broadcast_to(fade, key.shape)
    frame = frame_of(fade - rate, key, before=state.level, start=start, fresh=NEVER)
    weight = jnp.exp(frame.write)
    both = jnp.stack([weight * value, weight], -1)
    sums, memory = diagonal_scan(frame.decay[..., None], both, state=state.memory, start=start,
                                 form=form)
    # what the token itself reads: the sums before it, without the decay of its own step
    begun = start[..., None, None]
    earlier = jnp.concatenate([state.memory[:, None], sums[:, :-1]], 1)
    level = jnp.concatenate([state.level[:, None], frame.level[:, :-1]], 1) + fade
    level = jnp.where(begun, NEVER, level)
    own = bonus + key
    top = jax.lax.stop_gradient(jnp.maximum(level, own))
    past = jnp.where(begun[..., None], 0.0, earlier) * jnp.exp(level - top)[..., None]
    own = jnp.exp(own - top)
    out = (past[..., 0] + own * value) / (past[..., 1] + own)
    return out, WkvState(memory, frame.last)


def wkv_pairs(key: jax.Array, value: jax.Array, log_pair: jax.Array, rate: jax.Array,
              bonus: jax.Array, allowed: jax.Array, own: jax.Array) -> jax.Array:
    """The same from log weights of pairs: key [B,S,H,K], value [B,S,H,K] or [B,T,S,H,K], log_pair
    [B,H,K,T,S] (decay of each step included, -w for a neighbour) -> [B,T,H,K], wide.

    allowed, own [B,T,S] bool: which inputs a reader sees, and which one is its own.
    """
    columns = lambda a: jnp.moveaxis(wide(a), 1, -1)[..., None, :]  # [B,H,K,1,S]
    log = jnp.where(own[:, None, None], bonus[..., None, None],
                    rate[..., None, None]) + log_pair + columns(key)
    weights = jax.nn.softmax(jnp.where(allowed[:, None, None], log, -jnp.inf), -1)
    value = wide(value)
    if value.ndim == 4:
        return jnp.einsum("bhkts,bshk->bthk", weights, value)
    return jnp.einsum("bhkts,btshk->bthk", weights, value)
