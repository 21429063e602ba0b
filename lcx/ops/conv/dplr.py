"""State spaces whose matrix is diagonal plus low rank: the kernel by Cauchy sums (S4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx.types import precise, wide


@struct.dataclass
class Dplr:
    """K(l) = C A^l B with A, B the bilinear rule of h' = (diag(pole) - low low^*) h + column x.

    Arrays [...C,M], complex: the M modes kept of M conjugate pairs, each times what the step makes
    of it: pole by the step, low by its root, column by the step. read is C (I - A^length), of which
    the first `length` rows of the kernel are a sum of simple fractions at the roots of unity.
    """

    pole: jax.Array
    low: jax.Array
    column: jax.Array
    read: jax.Array
    length: int = struct.field(pytree_node=False)

    @property
    def scans(self) -> bool:
        """Its state is a matrix product per token."""
        return False

    def taps(self, length: int) -> jax.Array:
        """K(0..length-1) [length,...C]. Beyond `self.length` the matrix's powers are needed too."""
        kernel = self
        while kernel.length < length:
            kernel = kernel.doubled()
        return _cauchy(kernel)[:length]

    def doubled(self) -> Dplr:
        """The same kernel, to twice the length: read (I + A^length)."""
        power = _power(self.dense()[0], self.length)
        both = jnp.concatenate([self.read, self.read.conj()], -1)
        more = precise("...m,...mn->...n", both, power)[..., :self.read.shape[-1]]
        return self.replace(read=self.read + more, length=2 * self.length)

    def dense(self) -> tuple[jax.Array, jax.Array]:
        """A [...C,2M,2M] and B [...C,2M] over all modes, the conjugates last."""
        both = lambda a: jnp.concatenate([a, a.conj()], -1)
        pole, low, column = both(self.pole), both(self.low), both(self.column)
        one = jnp.eye(pole.shape[-1], dtype=pole.dtype)
        matrix = pole[..., None] * one - low[..., :, None] * low[..., None, :].conj()
        left = one - matrix / 2
        return (jnp.linalg.solve(left, one + matrix / 2),
                jnp.linalg.solve(left, column[..., None])[..., 0])

    def run(self, x: jax.Array, *, log_decay: jax.Array | None = None, start: jax.Array,
            state: jax.Array | None = None, form: str = "recurrent", chunk: int = 1):
        """Token by token, as `mode_conv` says: x [B,T,...C] -> y and the state [B,...C,M,2]."""
        count = self.pole.shape[-1]
        matrix, column = self.dense()
        one = jnp.eye(2 * count, dtype=matrix.dtype)
        power = _power(matrix, self.length)
        both = jnp.concatenate([self.read, self.read.conj()], -1)
        read = jnp.linalg.solve(jnp.swapaxes(one - power, -1, -2), both[..., None])[..., :count, 0]
        own, other = matrix[..., :count, :count], matrix[..., :count, count:]
        column, x = column[..., :count], wide(x)
        state = jnp.zeros((x.shape[0], *read.shape, 2), x.dtype) if state is None else wide(state)
        state = jax.lax.complex(state[..., 0], state[..., 1])

        def step(state, token):
            x, fade, start = token
            keep = jnp.where(start.reshape(-1, *[1] * (x.ndim - 1)), 0.0, 1.0)
            keep = keep if fade is None else keep * jnp.exp(fade)
            state = keep[..., None] * (precise("...mn,b...n->b...m", own, state)
                                       + precise("...mn,b...n->b...m", other, state.conj()))
            state = state + column * x[..., None]
            return state, 2 * jnp.sum(jnp.real(read * state), -1)

        fade = None if log_decay is None else wide(log_decay)
        tokens = jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0), (x, fade, start))
        state, y = jax.lax.scan(step, state, tokens)
        return jnp.moveaxis(y, 0, 1), jnp.stack([state.real, state.imag], -1)


def _power(matrix: jax.Array, count: int) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # TF32 errors would grow with every power
        return jnp.linalg.matrix_power(matrix, count)


def start_read(read: jax.Array, kernel: Dplr) -> jax.Array:
    """C [...C,M] -> C (I - A^length), of a kernel whose own `read` is not looked at."""
    doubled = kernel.replace(read=read).doubled()
    return 2 * read - doubled.read


@jax.checkpoint
def _cauchy(kernel: Dplr) -> jax.Array:
    """K(0..length-1): its Fourier transform at the roots of unity w, then back.

    With d = 2 (1 - w) - (1 + w) pole every term of the bilinear resolvent is a sum of v / d over
    all modes, which has no singular place, w = -1 included.
    """
    length, channels = kernel.length, kernel.pole.ndim
    turn = -2 * jnp.pi * wide(jnp.arange(length // 2 + 1)) / length
    root = jax.lax.complex(jnp.cos(turn), jnp.sin(turn)).reshape(-1, *[1] * channels)
    below = 2 * (1 - root) - (1 + root) * kernel.pole
    mirrored = 2 * (1 - root) - (1 + root) * kernel.pole.conj()
    low, column, read = kernel.low, kernel.column, kernel.read
    fractions = lambda v: jnp.sum(v / below + v.conj() / mirrored, -1)
    root = root[..., 0]
    through = fractions(read * low) * fractions(low.conj() * column)
    through = (1 + root) * through / (1 + (1 + root) * fractions(low.conj() * low))
    return jnp.fft.irfft(2 * (fractions(read * column) - through), length, axis=0)
