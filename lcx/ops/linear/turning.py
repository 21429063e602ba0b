"""Decay *and* rotation between the tokens of a chunk, where the two gates of a pair differ.

Token t first turns each channel pair, then fades both of its channels: M_t = diag(decay_t) R_t, a
2 x 2 matrix per pair. Gates that differ inside a pair do not commute with its rotation, so there is
no sum to take differences of; but every product of neighbours M_i .. M_{j+1} is a contraction, and
products over blocks of 16 tokens, and of whole blocks, are all that a chunk needs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lcx.ops.linear.decay import BLOCK, Decay
from lcx.ops.scan.transition import Pairs


class Turning(NamedTuple):
    """One chunk's transport, of channels laid out (first of each pair, second, the unturned rest).

    token, prefix, suffix: Pairs [G,b,s,2,2,P] of b blocks of s tokens: the token itself, from its
    block's start up to and with it, and after it to its block's end. between [G,b+1,b+1,2,2,P]:
    from one boundary of blocks (second index) to a later one. rest: the decay of channels without
    a pair. document [B,N,1,C] counts the segment starts. G = B N H in one axis: the CPU backend of
    jaxlib 0.10 crashes in gradients of large products of arrays with eight axes.
    """

    token: Pairs
    prefix: Pairs
    suffix: Pairs
    between: Pairs
    rest: Decay
    document: jax.Array

    @classmethod
    def of_chunk(cls, log_decay, rotation, start, shape, dtype) -> "Turning":
        """log_decay [B,N,C,H,1 or K] or None, rotation [B,N,C,H,P]; shape is [B,N,H,C,K]."""
        batch, chunks, num_heads, chunk, size = shape
        turned = 2 * rotation.shape[-1]
        gate = jnp.zeros((), dtype) if log_decay is None else log_decay.astype(dtype)
        gate = jnp.broadcast_to(gate, (batch, chunks, chunk, num_heads, size))
        rest = Decay.of_chunk(gate[..., turned:], start, shape, dtype)
        heads_first = lambda x: jnp.swapaxes(x, 2, 3)
        block = BLOCK if chunk % BLOCK == 0 else chunk

        def split(x):  # [B,N,C,H,*] -> [G,b,s,*]
            x = heads_first(x)
            return x.reshape(-1, chunk // block, block, *x.shape[4:])

        token = Pairs.of_gates(split(jnp.exp(gate[..., :turned])), split(rotation.astype(dtype)))
        prefix = running(token, lambda done, now: now.compose(done), axis=2)
        after = jax.tree.map(lambda m: jnp.flip(jnp.roll(m, -1, axis=2), 2), token)
        after = Pairs(after.matrix.at[:, :, 0].set(_eye(after.matrix)))
        suffix = running(after, lambda done, now: done.compose(now), axis=2)
        suffix = Pairs(jnp.flip(suffix.matrix, 2))
        whole = Pairs(prefix.matrix[..., -1, :, :, :])
        return cls(token, prefix, suffix, _between(whole), rest, rest.document)

    def from_start(self, x: jax.Array) -> jax.Array:
        """x [B,N,H,C,K] as it meets the incoming state."""
        turned, rest = self._parts(x)
        first = Pairs(self.between.matrix[:, :-1, :1])  # [G,b,1,2,2,P]
        turned = first.transpose().apply(self.prefix.transpose().apply(turned))
        inside = (self.document == 0)[..., None]
        return jnp.where(inside, self._join(turned, self.rest.from_start(rest)), 0)

    def to_end(self, x: jax.Array) -> jax.Array:
        """x [B,N,H,C,K] as the outgoing state holds it."""
        turned, rest = self._parts(x)
        last = Pairs(self.between.matrix[:, -1, 1:, None])
        turned = last.apply(self.suffix.apply(turned))
        inside = (self.document == self.document[..., -1:])[..., None]
        return jnp.where(inside, self._join(turned, self.rest.to_end(rest)), 0)

    @property
    def across(self):
        """What the chunk does to the incoming state, for `carry`."""
        inside = (self.document[..., -1:] == 0)[..., None, None]  # [B,N,1,1,1,1]
        whole = self.between.matrix[:, -1, 0]
        whole = whole.reshape(*self.rest.total.shape[:3], *whole.shape[1:])
        whole = jnp.where(inside, whole, 0)
        return whole, self.rest.across

    @staticmethod
    def carry(across, state: jax.Array) -> jax.Array:
        """One chunk's `across` on a state [B,H,K,V]."""
        whole, rest = across
        turned = 2 * whole.shape[-1]
        top = state[..., :turned, :].reshape(*state.shape[:-2], 2, turned // 2, state.shape[-1])
        top = jnp.einsum("bhcdp,bhdpv->bhcpv", whole, top)
        top = top.reshape(*state.shape[:-2], turned, state.shape[-1])
        return jnp.concatenate([top, rest * state[..., turned:, :]], -2)

    def product(self, x: jax.Array, y: jax.Array, strict: bool = False) -> jax.Array:
        """[B,N,H,C,C]: x_i^T M_i .. M_{j+1} y_j for j <= i (strict: j < i)."""
        chunk = x.shape[-2]
        dtype = self.token.matrix.dtype
        order = jnp.tri(chunk, k=-1 if strict else 0, dtype=bool)
        mask = order & (self.document[..., :, None] == self.document[..., None, :])
        xs, x_rest = self._parts(x)
        ys, y_rest = self._parts(y)
        inner = inside(self.token, xs, ys)  # [G,b,s,s]
        blocks = inner.shape[1]
        left = self.prefix.transpose().apply(xs)
        moved = Pairs(self.between.matrix[:, :-1, 1:, None])  # zero before its time
        right = moved.apply(self.suffix.apply(ys)[:, None])
        flat = lambda z: z.reshape(*z.shape[:-2], -1)
        outer = jnp.einsum("grsk,grctk->grsct", flat(left).astype(x.dtype),
                           flat(right).astype(y.dtype), preferred_element_type=dtype)
        own = jnp.eye(blocks, dtype=dtype)[:, None, :, None]
        out = outer + inner[..., None, :] * own
        out = out.reshape(*x.shape[:-1], chunk)
        if x_rest.shape[-1]:
            out = out + self.rest.product(x_rest, y_rest, strict)
        return jnp.where(mask, out, 0)

    def _parts(self, x):
        """[B,N,H,C,K] -> pairs [G,b,s,2,P] and the rest [B,N,H,C,R]."""
        blocks, block = self.token.matrix.shape[1:3]
        pairs = self.token.matrix.shape[-1]
        turned = x[..., : 2 * pairs]
        turned = turned.reshape(-1, blocks, block, 2, pairs)
        return turned.astype(self.token.matrix.dtype), x[..., 2 * pairs :]

    @staticmethod
    def _join(turned, rest):
        turned = turned.reshape(*rest.shape[:-1], -1)
        return jnp.concatenate([turned, rest.astype(turned.dtype)], -1)


def _eye(matrix):
    """The identity for matrices [...,2,2,P]."""
    return jnp.eye(2, dtype=matrix.dtype)[..., None]


def running(steps: Pairs, then, axis: int) -> Pairs:
    """Products of the first 1, 2, ... steps along an axis, `then`(so far, next) each."""
    first = jnp.moveaxis(steps.matrix, axis, 0)

    def body(done, now):
        done = then(Pairs(done), Pairs(now)).matrix
        return done, done

    _, out = jax.lax.scan(body, jnp.broadcast_to(_eye(first), first.shape[1:]), first)
    return Pairs(jnp.moveaxis(out, 0, axis))


def _between(whole: Pairs) -> Pairs:
    """Blocks [G,b,2,2,P] -> from boundary c to boundary r, [G,r,c,2,2,P]; 0 for c > r."""
    blocks = whole.matrix.shape[1]
    place = jnp.arange(blocks + 1)[:, None, None, None]
    eye = _eye(whole.matrix)
    row = jnp.where(place == 0, eye, jnp.zeros_like(whole.matrix[:, :1]))

    def body(row, now):
        block, number = now
        row = Pairs(block[:, None]).compose(Pairs(row)).matrix
        row = jnp.where(place == number + 1, eye, row)
        return row, row

    _, rows = jax.lax.scan(body, row, (jnp.moveaxis(whole.matrix, 1, 0), jnp.arange(blocks)))
    return Pairs(jnp.moveaxis(jnp.concatenate([row[None], rows]), 0, 1))


def inside(token: Pairs, x: jax.Array, y: jax.Array) -> jax.Array:
    """Pairs of one block [..., b, s, s] of x, y [..., b, s, 2, P]; j > i is 0.

    All keys of a block step through it together, each from its own token on.
    """
    size = x.shape[-3]
    first = lambda z, axis: jnp.moveaxis(z, axis, 0)

    def body(moved, now):
        step, query, number = now
        moved = Pairs(step[..., None, :, :, :]).apply(moved)
        own = (jnp.arange(size) == number)[:, None, None]
        moved = jnp.where(own, y, moved)
        return moved, jnp.sum(query[..., None, :, :] * moved, axis=(-1, -2))

    tokens = first(token.matrix, -4), first(x, -3), jnp.arange(size)
    _, rows = jax.lax.scan(body, jnp.zeros_like(y), tokens)
    return jnp.moveaxis(rows, 0, -2)
