"""RWKV-6: gates per channel that close after the read, on inputs blended with the token before."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, Fraction
from lcx.errors import ConfigError
from lcx.layers import Dense, token_before
from lcx.mixers.vector_family import VectorMixer
from lcx.ops import conv
from lcx.ops.linear import own as itself
from lcx.types import wide
from lcx.weights import free, matrix

NAMES = ("decay", "key", "value", "query", "gate")  # the order of the published tables


@struct.dataclass
class Rwkv6State:
    """The last token that the blend reads, and the state of the core."""

    tail: conv.ConvState
    core: Any


class Rwkv6(VectorMixer):
    """The time mixing of RWKV-6 (arXiv:2404.05892): [B,T,D] -> [B,T,D].

    o_t = r_t^T (S_{t-1} + diag(u) k_t v_t^T), S_t = diag(w_t) S_{t-1} + k_t v_t^T: the gate closes
    after the read, the token's own weight has the learned bonus u (and a bias, like any other). w =
    exp(-exp(w_0 + W_2 tanh(W_1 x_w))); each of w, k, v, r, g sees its own blend x + (x' - x)(mu +
    M_2 tanh(M_1 x_x)) of a token and the one before it. out = W_o (norm(o) * SiLU(W_g x_g)), a
    group norm per head with gain and bias (eps 64e-5). A scheme's transport acts before the read.

    blend_rank, decay_rank: of M and W; depth_ratio: l / (layers - 1) of this layer, and
    depth_left: 1 - l / layers, read by the published initial values only. M_1, W_1 start at zero,
    M_2, W_2 uniform within 0.01, projections as a torch linear map does (uniform 1/sqrt(fan_in)).
    """

    num_heads: Count = 4
    blend_rank: Count = 32
    decay_rank: Count = 64
    depth_ratio: Fraction = 0.0
    depth_left: Fraction = 1.0

    paper: ClassVar[str] = "arXiv:2404.05892"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(blend_rank=4, decay_rank=6),
        dict(num_heads=2, blend_rank=3, decay_rank=4, depth_ratio=1.0, depth_left=0.5))
    read_first = True

    def site(self) -> L.Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        dim = self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Rwkv6State | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        shape, (ramp, zigzag) = (self.num_heads, self.width // self.num_heads), self._channels()
        before, tail = token_before(x, seq, None if state is None else state.tail)
        param = lambda name, axes, size, init: wide(self.param(name, free(init, axes), size))
        away = before - x
        mu = param("blend", (None, "width"), (6, self.width), self._blend)
        inner = (x + away * mu[0]).astype(x.dtype)
        inner = jnp.tanh(Dense((5, self.blend_rank), (None, None), name="blend_down",
                               init=nn.initializers.zeros_init())(inner))
        up = self.param("blend_up", matrix(_small, (None, None, "width")),
                        (5, self.blend_rank, self.width))
        mu = mu[1:] + jnp.einsum("btnr,nrd->btnd", wide(inner), wide(up))
        blended = {name: (x + away * mu[:, :, n]).astype(x.dtype) for n, name in enumerate(NAMES)}
        start = _torch(self.width)
        dense = lambda name: Dense(shape, ("heads", "head_dim"), init=start, name=name)(
            blended[name])
        query, key, value, gate = (dense(name) for name in ("query", "key", "value", "gate"))
        low = jnp.tanh(Dense((self.decay_rank,), (None,), name="decay_down",
                             init=nn.initializers.zeros_init())(blended["decay"]))
        rate = Dense(shape, ("heads", "head_dim"), (None,), init=_small, name="decay_up")(low)
        axes = ("heads", "head_dim")
        rate = wide(rate) + param("decay", axes, shape, _fixed(
            -6 + 5 * ramp ** (0.7 + 1.3 * self.depth_ratio)))
        bonus = param("bonus", axes, shape, _fixed(self.depth_ratio * (1 - ramp) + zigzag))
        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        own = itself.product(query * bonus, key, lanes)
        out, core = self.mix(query, key, value, seq, lanes, carry,
                             None if state is None else state.core, log_decay=-jnp.exp(rate),
                             own=own)
        out = wide(out)
        out = out - jnp.mean(out, -1, keepdims=True)
        out = out * jax.lax.rsqrt(jnp.mean(out * out, -1, keepdims=True) + 64e-5)
        out = out * param("norm_scale", axes, shape, nn.initializers.ones_init())
        out = (out + param("norm_bias", axes, shape, nn.initializers.zeros_init())).astype(x.dtype)
        scaled = lambda *args: self.output_scale * start(*args)
        out = Dense((self.width,), ("width",), axes, init=scaled, name="out")(out * nn.silu(gate))
        return out, None if state is None else Rwkv6State(tail, core)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Rwkv6State:
        core = self.empty_state(batch, max_length, self.num_heads, self.site().value_dim, dtype)
        return Rwkv6State(conv.init_state(batch, 2, self.width, dtype), core)

    def _channels(self) -> tuple[np.ndarray, np.ndarray]:
        """n / (D - 1), and the zigzag of the published tables."""
        n = np.arange(self.width)
        return n / max(1, self.width - 1), ((n + 1) % 3 - 1) * 0.1

    def _blend(self, key, shape, dtype=jnp.float32):
        share = np.arange(self.width) / self.width
        powers = np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.5])[:, None]  # of x, w, k, v, r, g
        start = 1 - share ** (powers * self.depth_left)
        start[3] -= 0.3 * self.depth_ratio
        return jnp.asarray(start, dtype)


def _fixed(values: np.ndarray):
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(values, dtype).reshape(shape)


def _small(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -0.01, 0.01)


def _torch(width: int):
    bound = width**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound)
