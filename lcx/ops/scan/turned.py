"""The element-wise recurrence where some leading channel pairs turn and the rest do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx.ops.scan.diagonal import diagonal_scan


def turned_scan(log_decay: jax.Array, value: jax.Array, rotation: jax.Array | None, *,
                interleaved: bool = False, state: jax.Array | None = None,
                start: jax.Array | None = None, form: str | None = None):
    """`diagonal_scan` of value [B,T,H,K] whose leading 2P channels turn by rotation [.,T,.,P].

    interleaved: pairs (2m,2m+1), else (m,m+P). rotation None: nothing turns. Raises ValueError
    where 2P is more than K.
    """
    if rotation is None:
        return diagonal_scan(log_decay, value, state=state, start=start, form=form)
    width = 2 * rotation.shape[-1]
    if width > value.shape[-1]:
        raise ValueError(f"the rotation turns {width} channels, the mixer offers "
                         f"{value.shape[-1]}")
    log_decay = jnp.broadcast_to(log_decay, value.shape)
    rotation = jnp.broadcast_to(rotation, (*value.shape[:-1], width // 2))
    halves = _halves if interleaved else lambda x: x
    wholes = _interleave if interleaved else lambda x: x
    turned = lambda x: None if x is None else halves(x[..., :width])
    rest = lambda x: None if x is None else x[..., width:]
    parts = [jax.tree.map(wholes, diagonal_scan(
        turned(log_decay), turned(value), state=turned(state), rotation=rotation, start=start,
        form=form))]
    if width < value.shape[-1]:
        parts.append(diagonal_scan(rest(log_decay), rest(value), state=rest(state), start=start,
                                   form=form))
    return tuple(jnp.concatenate(part, -1) for part in zip(*parts))


def _halves(x: jax.Array) -> jax.Array:
    """Channel pairs (2m,2m+1) as (m,m+P)."""
    return jnp.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def _interleave(x: jax.Array) -> jax.Array:
    """Channel pairs (m,m+P) as (2m,2m+1)."""
    return jnp.stack(jnp.split(x, 2, -1), -1).reshape(x.shape)
