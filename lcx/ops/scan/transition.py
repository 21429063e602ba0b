"""What one token does to the state of an element-wise recurrence; both kinds compose."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Diagonal(NamedTuple):
    """A factor per channel: decay [...,D]."""

    decay: jax.Array

    @classmethod
    def of_gates(cls, decay: jax.Array, rotation: None) -> "Diagonal":
        return cls(decay)

    @staticmethod
    def split(x: jax.Array) -> jax.Array:
        return x

    @staticmethod
    def join(x: jax.Array) -> jax.Array:
        return x

    def apply(self, x: jax.Array) -> jax.Array:
        return self.decay * x

    def compose(self, earlier: "Diagonal") -> "Diagonal":
        return Diagonal(self.decay * earlier.decay)

    def transpose(self) -> "Diagonal":
        return self

    @staticmethod
    def outer(late: jax.Array, early: jax.Array) -> "Diagonal":
        """The gradient of sum(late * step.apply(early)) for the step."""
        return Diagonal(late * early)


class Pairs(NamedTuple):
    """A 2 x 2 matrix per pair of channels: matrix [...,2,2,D/2], on states [...,2,D/2]."""

    matrix: jax.Array

    @classmethod
    def of_gates(cls, decay: jax.Array, rotation: jax.Array) -> "Pairs":
        """Rotate by rotation [...,D/2], then decay by decay [...,D]."""
        cos, sin = jnp.cos(rotation), jnp.sin(rotation)
        turn = jnp.stack([jnp.stack([cos, -sin], -2), jnp.stack([sin, cos], -2)], -3)
        return cls(cls.split(decay)[..., :, None, :] * turn)

    @staticmethod
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)

    @staticmethod
    def join(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-2], -1)

    def apply(self, x: jax.Array) -> jax.Array:
        m = self.matrix
        return m[..., :, 0, :] * x[..., None, 0, :] + m[..., :, 1, :] * x[..., None, 1, :]

    def compose(self, earlier: "Pairs") -> "Pairs":
        m, n = self.matrix, earlier.matrix
        return Pairs(
            m[..., :, 0, None, :] * n[..., None, 0, :, :]
            + m[..., :, 1, None, :] * n[..., None, 1, :, :]
        )

    def transpose(self) -> "Pairs":
        return Pairs(jnp.swapaxes(self.matrix, -3, -2))

    @staticmethod
    def outer(late: jax.Array, early: jax.Array) -> "Pairs":
        return Pairs(late[..., :, None, :] * early[..., None, :, :])
