"""Cases of the linear mixers: a bare core, packed sequences, and NumPy loops in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx import mixers
from lcx.mixers.linear_family import LinearMixer
from tests.mixer_cases import close  # noqa: F401

B, T, H, K, V, D = 2, 21, 4, 6, 3, 16
SEGMENT = np.array([[1] * 8 + [2] * 1 + [3] * 12, [1] * 13 + [2] * 8])


class Core(LinearMixer):
    """The family's core alone: `mix` is called with any lanes."""

    kv_heads: int = H

    def site(self):
        return L.Site(H, self.kv_heads, K, K, D, T)


def mix(q, k, v, seq, lanes=None, form="auto", **options):
    core = Core(position="no_pe", width=D, train_length=T, form=form, kv_heads=k.shape[2])
    lanes = L.Lanes() if lanes is None else lanes
    call = jax.jit(lambda *a: core.apply({}, *a, lanes, (), None, **options, method="mix")[0])
    return call(*map(jnp.asarray, (q, k, v)), seq)


def draw(seed=0, kv_heads=2, positive=True):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(B, T, H, K)), rng.normal(size=(B, T, kv_heads, K))
    v = rng.normal(size=(B, T, kv_heads, V))
    return (np.abs(q), np.abs(k), v) if positive else (q, k, v)


def packed():
    return L.sequence(B, T, segment=SEGMENT)


def starts(b):
    return np.r_[True, SEGMENT[b, 1:] != SEGMENT[b, :-1]]


def turn(angles):
    """The matrix that turns channel pairs (m, m+P) by `angles`."""
    c, s = np.diag(np.cos(angles)), np.diag(np.sin(angles))
    return np.block([[c, -s], [s, c]])


def recurrence(q, k, v, *, steps=None, gate=None, normaliser=None, gain=1.0):
    """o_t = gain q_t^T S_t with S_t = exp(gate_t) M_t S_{t-1} + k_t v_t^T, on the packed rows.

    steps(b, h, t) -> M_t; the denominator knows no M and no gain.
    """
    out = np.zeros((B, T, H, V))
    for b in range(B):
        for h in range(H):
            memory, total = np.zeros((K, V)), np.zeros(K)
            n = h * k.shape[2] // H
            for t in range(T):
                if starts(b)[t]:
                    memory, total = np.zeros((K, V)), np.zeros(K)
                decay = 1.0 if gate is None else np.exp(gate[b, t, h])
                matrix = np.eye(K) if steps is None else steps(b, h, t)
                memory = decay * matrix @ memory + np.outer(k[b, t, n], v[b, t, n])
                total = decay * total + k[b, t, n]
                out[b, t, h] = gain * q[b, t, h] @ memory
                if normaliser:
                    out[b, t, h] /= q[b, t, h] @ total + 1e-6
    return out


def pairs_loop(q, k, v, weight, normaliser=None):
    """o_i = sum_j <q_i, M_ij k_j> f_ij v_j on the packed rows; weight(b, h, i, j) -> (M, f)."""
    out = np.zeros((B, T, H, V))
    for b in range(B):
        for h in range(H):
            n = h * k.shape[2] // H
            for i in range(T):
                total = 0.0
                for j in range(i + 1):
                    if SEGMENT[b, i] == SEGMENT[b, j]:
                        matrix, factor = weight(b, h, i, j)
                        out[b, i, h] += (q[b, i, h] @ matrix @ k[b, j, n]) * factor * v[b, j, n]
                        total += q[b, i, h] @ k[b, j, n] * factor
                if normaliser:
                    out[b, i, h] /= total + 1e-6
    return out


def layer(name, position="no_pe", form="auto", **options):
    spec = dict(name=name, form=form, **options)
    return mixers.make(spec, position=position, width=D, train_length=T, parent=None)


def run(mixer, found, x, seq, state=None, shared=None):
    """Output and next state."""
    return jax.jit(mixer.apply)(found, x, seq, state, shared)


def started(mixer, seq, dtype=jnp.float64, spread=0.3):
    """Input [B,T,D] and moved variables of a mixer."""
    x, rng = jax.random.normal(jax.random.key(0), (B, T, D), dtype), np.random.default_rng(2)
    found = nn.unbox(jax.jit(mixer.init)(jax.random.key(1), x, seq))
    move = lambda a: a + jnp.asarray(spread * rng.normal(size=a.shape), a.dtype)
    return x, jax.tree.map(move, found) if spread else found
