"""How logits become weights: what an attention may use in place of the plain softmax of its row."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct


def softmax(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """Softmax over the allowed keys: logits [B,H,T,S], allowed [B,1 or H,T,S] -> weights."""
    return jax.nn.softmax(jnp.where(allowed, logits, jnp.finfo(logits.dtype).min), axis=-1)


def over_visible(logits: jax.Array, visible: jax.Array) -> jax.Array:
    """Softmax over the visible entries; 0 in a row that has none."""
    return jnp.where(visible, softmax(logits, visible), 0.0)


@struct.dataclass
class Sink:
    """Softmax with one more term exp(sink_h) in the denominator, which reads nothing.

    sink [H]: its logit; 0 is the softmax-off-by-one.
    """

    sink: jax.Array

    core: ClassVar[str] = "softmax"  # what the oracle calls it

    def __call__(self, logits: jax.Array, allowed: jax.Array) -> jax.Array:
        rest = jnp.broadcast_to(self.sink[:, None, None].astype(logits.dtype),
                                (*logits.shape[:-1], 1))
        lowest = jnp.finfo(logits.dtype).min
        row = jnp.concatenate([jnp.where(allowed, logits, lowest), rest], -1)
        return jax.nn.softmax(row, axis=-1)[..., :-1]


@struct.dataclass
class Sigmoid:
    """sigmoid(logit + offset) of each allowed key by itself: weights of a row do not compete."""

    offset: jax.Array

    core: ClassVar[str] = "sigmoid"

    def __call__(self, logits: jax.Array, allowed: jax.Array) -> jax.Array:
        return jnp.where(allowed, jax.nn.sigmoid(logits + self.offset), 0.0)
