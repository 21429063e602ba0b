"""Corrected values of DeltaFormer: each is written less what a softmax already reads in its place.

    u_i = v_i - beta_i sum_{j<i} p_ij u_j,   p_i the softmax of row i over its strict past

(arXiv:2505.19488). With P strictly lower triangular this is (I + beta P) u = v, solved by blocks of
tokens: what earlier blocks contribute is a matmul, inside a block the inverse of a small triangle.
The gradient is that of the linear system (`lax.custom_linear_solve`): it solves the transposed one
and differentiates the chunked product, so memory stays linear in T.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops import endpoint, pairs
from lcx.ops.attention import reference
from lcx.ops.attention.chunked import CHUNK, mapped_once
from lcx.ops.attention.weights import over_visible
from lcx.ops.linear.triangular import unit_lower_inverse
from lcx.types import wide


def corrected(queries: pairs.Queries, keys: pairs.Keys, value: jax.Array, beta: jax.Array,
              lanes: L.Lanes, *, rotary_dim: int, scale: float, form: str = "blocked",
              chunk: int | None = None) -> jax.Array:
    """u [B,T,H,V], wide, of values [B,T,H,V] and beta [B,T,H].

    keys: all keys [B,S,N,K]; their values [B,S,H,V] are the u of the slots before `queries.slot`,
    later ones are not read. form: "blocked", or "dense" (one triangular solve, the naive twin).
    """
    value, before, lane = wide(value), wide(keys.value), lanes.value
    if isinstance(lane, L.ValueRotation):  # in the frame of the origin all sums are plain
        value = endpoint.turn_values(value, queries.seq, lane)
        before = endpoint.turn_values(before, keys.seq, lane)
    slots, length, size = keys.key.shape[1], value.shape[1], chunk or CHUNK
    old = (jnp.arange(slots) < queries.slot)[:, None, None]
    before = jnp.broadcast_to(jnp.where(old, before, 0.0), (value.shape[0], *before.shape[1:]))
    queries, keys, lanes = mapped_once(queries, keys, lanes, rotary_dim)
    slot, told = queries.slot, queries.seq.length
    tokens = (queries.replace(seq=queries.seq.replace(length=None), slot=None), lanes.temperature,
              wide(beta))

    def weights(tokens, first):
        """beta_i p_ij of a piece of the queries: [B,H,C,S]."""
        part, temperature, beta = tokens
        part = part.replace(seq=part.seq.replace(length=told), slot=slot + first)
        logits, allowed = reference.logits(part, keys, lanes.replace(temperature=temperature),
                                           rotary_dim=rotary_dim, scale=scale, causal=True,
                                           window=None)
        past = allowed & (keys.seq.order[..., None, :] < part.seq.order[..., :, None])
        return jnp.swapaxes(beta, 1, 2)[..., None] * over_visible(logits, past[:, None])

    def read(tokens, first):  # what the stream before this call takes from each value
        part = weights(tokens, first)
        out = pairs.mixed(part, before)
        if isinstance(lane, L.ValueTable):
            out += pairs.table_values(part, tokens[0].seq, keys.seq, lane)
        return out

    place = lambda u: jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(before), u, slot, 1)

    def apply(u):
        held = place(u)
        return u + pairs.over_queries(lambda tokens, first: pairs.mixed(weights(tokens, first),
                                                                        held), tokens, size)

    right = value - pairs.over_queries(read, tokens, size)
    if form == "dense":
        own = jax.lax.dynamic_slice_in_dim(weights(tokens, 0), slot, length, axis=3)
        solved = jax.scipy.linalg.solve_triangular(own, jnp.swapaxes(right, 1, 2), lower=True,
                                                   unit_diagonal=True)
        u = jnp.swapaxes(solved, 1, 2)
    else:
        pieces = _Pieces(weights, tokens, slot, slots, length, min(size, length))
        u = jax.lax.custom_linear_solve(apply, right, lambda _, b: pieces.solve(b),
                                        lambda _, b: pieces.solve_transposed(b))
    if isinstance(lane, L.ValueRotation):
        u = endpoint.turn_values(u, queries.seq, lane, sign=-1)
    return u


class _Pieces:
    """Forward and backward substitution over pieces of `size` tokens; padded ones are not read."""

    def __init__(self, weights, tokens, slot, slots, length, size):
        self.weights, self.slot, self.slots, self.size = weights, slot, slots, size
        self.length, self.count = length, -(-length // size)
        self.tokens = jax.tree.map(lambda a: self.split(a, "edge"), tokens)

    def split(self, a, mode="constant"):
        """[B,T,...] -> [count,B,size,...]."""
        extra = self.count * self.size - self.length
        a = jnp.pad(a, [(0, 0), (0, extra)] + [(0, 0)] * (a.ndim - 2), mode=mode)
        return jnp.moveaxis(a.reshape(a.shape[0], self.count, self.size, *a.shape[2:]), 1, 0)

    def merge(self, a):
        """[count,B,size,...] -> [B,T,...]."""
        a = jnp.moveaxis(a, 0, 1)
        return a.reshape(a.shape[0], -1, *a.shape[3:])[:, : self.length]

    def piece(self, tokens, first):
        """Weights of a piece over all slots and room for padding, and the inverse of its own."""
        weights = self.weights(tokens, first)
        weights = jnp.pad(weights, [(0, 0)] * 3 + [(0, self.size)])
        own = jax.lax.dynamic_slice_in_dim(weights, self.slot + first, self.size, axis=3)
        return weights, unit_lower_inverse(jnp.tril(own, -1))

    def room(self, like):
        return jnp.zeros((like.shape[0], self.slots + self.size, *like.shape[2:]), like.dtype)

    def solve(self, right):
        def step(held, piece):
            tokens, right, first = piece
            weights, inverse = self.piece(tokens, first)
            right = right - pairs.mixed(weights, held)
            u = jnp.einsum("bhij,bjhv->bihv", inverse, right)
            return jax.lax.dynamic_update_slice_in_dim(held, u, self.slot + first, 1), u

        first = jnp.arange(self.count) * self.size
        _, u = jax.lax.scan(step, self.room(right), (self.tokens, self.split(right), first))
        return self.merge(u)

    def solve_transposed(self, right):
        def step(rest, piece):  # rest: of the right side, after all later pieces
            tokens, first = piece
            weights, inverse = self.piece(tokens, first)
            own = jax.lax.dynamic_slice_in_dim(rest, self.slot + first, self.size, 1)
            u = jnp.einsum("bhji,bjhv->bihv", inverse, own)
            u = jnp.where((first + jnp.arange(self.size) < self.length)[:, None, None], u, 0.0)
            return rest - jnp.einsum("bhis,bihv->bshv", weights, u), u

        first = jnp.arange(self.count) * self.size
        rest = jax.lax.dynamic_update_slice_in_dim(self.room(right), right, self.slot, 1)
        _, u = jax.lax.scan(step, rest, (self.tokens, first), reverse=True)
        return self.merge(u)
