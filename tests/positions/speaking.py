"""What tests of single schemes share: its lanes, its bias matrix, its rotated scores, its embed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx import positions
from lcx.study import probe

WIDTH = 16


def site(dim=8, heads=4, train_length=16, causal=True):
    return L.Site(heads, heads, dim, dim, WIDTH, train_length, causal)


def speak(spec, seq, x=None, change=None, **where):
    """Lanes and variables of a scheme at fresh parameters, which change(variables) moves."""
    scheme = positions.make(spec, site(**where))
    x = jnp.zeros((1, seq.order.shape[1], WIDTH)) if x is None else x
    carry = scheme.init_carry(x.shape[0])
    found = nn.unbox(jax.jit(lambda: scheme.init(jax.random.key(0), x, seq, carry,
                                                 method="lanes"))())
    found = found if change is None else change(found)
    return scheme.apply(found, x, seq, carry, method="lanes")[0], found


def kernel_at(spec, distances, change=None, **where):
    """Values [..., H] of a scheme's only, Toeplitz, bias at distances of ids."""
    lanes, _ = speak(spec, L.sequence(1, 2), change=change, **where)
    (bias,) = lanes.bias
    return np.asarray(jax.jit(bias.kernel)(bias.params, jnp.asarray(distances, float)))


def weights(spec, query, key, seq, x=None, change=None, train_length=16):
    """Attention weights [H,T,S] through the path of every softmax mixer."""
    x = jnp.zeros((1, seq.order.shape[1], WIDTH)) if x is None else x
    put = None if change is None else lambda found: {
        **found, "params": {"position": change({"params": found["params"]["position"]})["params"]}}
    return np.asarray(probe.weights(spec, query, key, x, seq, train_length=train_length,
                                    change=put))


def softmax(logits):
    """Twin: causal softmax [H,T,S] in NumPy."""
    logits = np.where(np.tri(logits.shape[-1], dtype=bool), logits, -np.inf)
    out = np.exp(logits - logits.max(-1, keepdims=True))
    return out / out.sum(-1, keepdims=True)


def turned(query, key, angle):
    """Twin: Re(sum q_m conj(k_m) e^(i angle)) [H,T,S] of half-split pairs, angles [T,S,P]."""
    q, k, width = np.asarray(query[0]), np.asarray(key[0]), angle.shape[-1]
    q, k = (a[..., :width] + 1j * a[..., width:2 * width] for a in (q, k))
    return np.einsum("thp,shp,tsp->hts", q, k.conj(), np.exp(1j * angle)).real


def vectors(length, dim=8, heads=4):
    """Query, key [1,T,H,K] and layer input [1,T,D]."""
    return [jnp.asarray(np.random.default_rng(n).normal(size=shape)) for n, shape in enumerate(
        [(1, length, heads, dim), (1, length, heads, dim), (1, length, WIDTH)])]


def embed(spec, seq, x=None, width=WIDTH, train_length=16):
    """The input lane of a scheme: (apply(variables, x, seq), variables, x)."""
    (module,) = positions.make_embed(spec, width, train_length)
    x = jnp.zeros((1, seq.order.shape[1], width)) if x is None else x
    found = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, seq[:1]))
    return module.apply, found, x


def theta(dim, base=1e4):
    return base ** (-2.0 * np.arange(dim // 2) / dim)
