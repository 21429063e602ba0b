"""Decay between the tokens of a chunk, from per-token log gates: differences of sums, never > 0."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 16  # per-channel gates: pairs inside a block are weighed one by one, others by matmul


def floored(log_decay: jax.Array) -> jax.Array:
    """Log gates as these ops take them: exp is 0 below the floor, and -inf has no integral."""
    return jnp.maximum(log_decay, math.log(jnp.finfo(log_decay.dtype).tiny))


class Decay(NamedTuple):
    """One chunk's transport. total [B,N,H,C,1 or K] integrates the log gates from its start;
    document [B,N,1,C] counts the segment starts, so that pairs of different segments weigh 0.
    """

    total: jax.Array
    document: jax.Array

    @classmethod
    def of_chunk(cls, log_decay, start, shape, dtype) -> "Decay":
        """log_decay [B,N,C,H,1 or K] or None, start [B,N,C] or None; shape is [B,N,H,C,K]."""
        batch, chunks, num_heads, chunk, _ = shape
        if start is None:
            document = jnp.zeros((batch, chunks, 1, chunk), jnp.int32)
        else:
            document = jnp.cumsum(start.astype(jnp.int32), axis=-1)[:, :, None]
        if log_decay is None:
            return cls(jnp.zeros((batch, chunks, num_heads, chunk, 1), dtype), document)
        gate = floored(log_decay.astype(dtype))
        if start is not None:  # no pair that counts crosses a start: keep it out of the sums
            gate = jnp.where(start[..., None, None], 0, gate)
        return cls(jnp.cumsum(jnp.swapaxes(gate, 2, 3), axis=-2), document)

    def from_start(self, x: jax.Array) -> jax.Array:
        """x [B,N,H,C,K] as it meets the incoming state."""
        inside = (self.document == 0)[..., None]
        return x * jnp.where(inside, jnp.exp(self.total), 0)

    def to_end(self, x: jax.Array) -> jax.Array:
        """x [B,N,H,C,K] as the outgoing state holds it."""
        inside = (self.document == self.document[..., -1:])[..., None]
        return x * jnp.where(inside, jnp.exp(self.total[..., -1:, :] - self.total), 0)

    @property
    def across(self) -> jax.Array:
        """[B,N,H,1 or K,1]: what the chunk leaves of the incoming state."""
        inside = (self.document[..., -1:] == 0)[..., None]
        return jnp.swapaxes(jnp.where(inside, jnp.exp(self.total[..., -1:, :]), 0), -1, -2)

    @staticmethod
    def carry(across: jax.Array, state: jax.Array) -> jax.Array:
        """One chunk's `across` on a state [B,H,K,V]."""
        return across * state

    def product(self, x: jax.Array, y: jax.Array, strict: bool = False) -> jax.Array:
        """[B,N,H,C,C]: sum_k x_ik y_jk exp(total_ik - total_jk) for j <= i (strict: j < i)."""
        chunk = x.shape[-2]
        order = jnp.tri(chunk, k=-1 if strict else 0, dtype=bool)
        mask = order & (self.document[..., :, None] == self.document[..., None, :])
        if self.total.shape[-1] == 1:
            total = self.total[..., 0]
            gap = jnp.where(mask, total[..., :, None] - total[..., None, :], 0)
            scores = jnp.einsum("bnhik,bnhjk->bnhij", x, y, preferred_element_type=self.total.dtype)
            return jnp.where(mask, jnp.exp(gap) * scores, 0)
        return jnp.where(mask, _channel_product(x, y, self.total), 0)


def _channel_product(x, y, total):
    """[..., C, C]; entries with j > i are finite but meaningless.

    Blocks of 16 rows: earlier keys by matmul, both sides decayed to the row block's start (each
    factor <= 1), keys of the same block pair by pair.
    """
    shape, (chunk, dtype) = x.shape, (x.shape[-2], total.dtype)
    # one leading axis: CPU backends fail in gradients of large arrays with many
    x, y, total = (z.reshape(-1, *z.shape[-2:]) for z in (x, y, total))
    size = BLOCK if chunk % BLOCK == 0 else chunk
    blocks = chunk // size

    def split(z):
        return z.reshape(*z.shape[:-2], blocks, size, z.shape[-1])

    xs, ys, totals = split(x), split(y), split(total)
    gap = totals[..., :, None, :] - totals[..., None, :, :]
    gap = jnp.where(jnp.tri(size, dtype=bool)[..., None], gap, 0)
    inner = jnp.sum(xs[..., :, None, :] * ys[..., None, :, :] * jnp.exp(gap), axis=-1)
    if blocks == 1:
        return inner.reshape(*shape[:-1], chunk)
    entry = jnp.roll(totals[..., -1:, :], 1, axis=-3).at[..., 0, :, :].set(0)
    left = xs * jnp.exp(totals - entry)
    earlier = (jnp.arange(chunk) < size * jnp.arange(blocks)[:, None])[..., None]
    gap = jnp.where(earlier, entry - total[..., None, :, :], 0)
    right = jnp.where(earlier, y[..., None, :, :] * jnp.exp(gap), 0)
    outer = jnp.einsum(
        "...ik,...jk->...ij",
        left.astype(x.dtype),
        right.astype(y.dtype),
        preferred_element_type=dtype,
    )
    own = jnp.eye(blocks, dtype=dtype)[:, None, :, None]
    inner = (inner[..., None, :] * own).reshape(outer.shape)
    return (outer + inner).reshape(*shape[:-1], chunk)
