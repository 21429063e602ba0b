"""Convolutions whose inputs turn on the way: y_i = sum_j K(i - j) R_{j-i} x_j on channel pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.ops import endpoint
from lcx.types import wide


@struct.dataclass
class Turn:
    """Turns inputs by their own ids and outputs back by theirs, around any convolution.

    The two channels of a pair have kernels of their own, so that each kernel must see both of the
    turned inputs: `inputs` doubles the heads, the second half with the channels of each pair
    swapped, and `outputs` puts the two together again. rotation None: neither does anything.
    """

    rotation: L.Rotation | None

    @property
    def copies(self) -> int:
        """How many times the heads go through the convolution."""
        return 1 if self.rotation is None else 2

    def inputs(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """[B,T,H,K] -> [B,T,H or 2H,K]."""
        if self.rotation is None:
            return x
        turned = endpoint.rotate(x, L.phase(self.rotation, ids), x.shape[-1],
                                 self.rotation.interleaved)
        return jnp.concatenate([turned, self._swapped(turned)], axis=2)

    def outputs(self, y: jax.Array, ids: jax.Array) -> jax.Array:
        """[B,T,H or 2H,K] -> [B,T,H,K]."""
        if self.rotation is None:
            return y
        own, other = jnp.split(y, 2, axis=2)
        angle = L.phase(self.rotation, ids)[:, :, None]
        spare = [(0, 0)] * 3 + [(0, y.shape[-1] - 2 * angle.shape[-1])]
        cos = jnp.pad(self._both(jnp.cos(angle), 1.0), spare, constant_values=1.0)
        sin = jnp.pad(self._both(jnp.sin(angle), -1.0), spare)
        return own * cos + other * sin

    def _both(self, a: jax.Array, sign: float) -> jax.Array:
        """A number per pair -> one per channel, the second of each pair times `sign`."""
        if self.rotation.interleaved:
            return jnp.stack([a, sign * a], -1).reshape(*a.shape[:-1], -1)
        return jnp.concatenate([a, sign * a], -1)

    def _swapped(self, x: jax.Array) -> jax.Array:
        count = self.rotation.frequency.shape[-1]
        pairs, rest = x[..., :2 * count], x[..., 2 * count:]
        shape = (count, 2) if self.rotation.interleaved else (2, count)
        pairs = pairs.reshape(*x.shape[:-1], *shape)
        pairs = jnp.flip(pairs, -1 if self.rotation.interleaved else -2)
        return jnp.concatenate([pairs.reshape(*x.shape[:-1], -1), jnp.zeros_like(rest)], -1)


def pieces(transport: L.Piecewise, x: jax.Array, keys: L.Sequence, queries: L.Sequence, convolve):
    """The same under a rotation whose ids depend on the pair: convolve(inputs, mask [B,T,S]) runs
    once for each piece, on the pairs that it holds."""
    turn, params = Turn(transport.rotation), transport.params
    piece = transport.select(params, queries.ids[..., :, None, 0], keys.ids[..., None, :, 0])
    total = 0.0
    for number, (query_map, key_map) in enumerate(transport.pieces):
        y = convolve(turn.inputs(x, key_map(params, keys.ids)), piece == number)
        total += turn.outputs(y, query_map(params, queries.ids))
    return wide(total)
