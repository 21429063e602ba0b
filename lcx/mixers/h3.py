"""H3: a shift and a diagonal state space with multiplicative gates between them."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, ShortConv
from lcx.mixers.lti_family import LtiMixer, LtiState
from lcx.mixers.s4d import StateSpace, bilinear
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class H3(LtiMixer):
    """Hungry hungry hippos (arXiv:2212.14052): W_o (query . (SSM_diag(SSM_shift(key) value^T))).

    SSM_shift is a causal convolution over the last `state_dim` tokens of each key channel,
    SSM_diag the bilinear rule of a diagonal state space of `state_dim` (start "lin" of S4D), one
    for the outer product of every `head_dim` keys and values; each adds skip times its input, skip
    standard normal. No activation; all maps with biases. num_heads: groups of those products, of
    which a scheme speaks. The shift's input vector, (1, 0, ...) at the start and trained in the
    authors' code, is left there: its output vector alone gives every kernel.
    """

    num_heads: Count = 4
    head_dim: Count = 1
    state_dim: Count = 64

    paper: ClassVar[str] = "arXiv:2212.14052"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=6), dict(num_heads=2, head_dim=2, state_dim=4))

    def site(self) -> Site:
        if self.width % (self.num_heads * self.head_dim):
            raise ConfigError(f"num_heads={self.num_heads} times head_dim={self.head_dim} must "
                              f"divide width={self.width}")
        dim = self.width // self.num_heads * self.head_dim  # entries of outer products
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: LtiState | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, size = self.num_heads, self.head_dim
        count = self.width // heads // size  # kernels of a group
        inward = lambda name: Dense((self.width,), ("channels",), use_bias=True, name=name)(x)
        query, key, value = inward("query"), inward("key"), inward("value")
        normal = lambda name, shape, *axes: self.param(
            name, free(nn.initializers.normal(1.0), axes), shape)
        shifted, tail = ShortConv(self.state_dim, name="shift")(
            key, seq, None if state is None else state.conv)
        key = shifted + normal("shift_skip", (self.width,), "channels").astype(x.dtype) * key
        apart = lambda a: a.reshape(*x.shape[:2], heads, count, size)
        products = apart(key)[..., :, None] * apart(value)[..., None, :]
        kernel = StateSpace((heads, count), self.state_dim, "lin", (0.001, 0.1), bilinear,
                            name="kernel")()
        kernel = jax.tree.map(lambda a: jnp.repeat(a, size * size, axis=1), kernel)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        y, after = self.convolve(products.reshape(*x.shape[:2], heads, -1), kernel, seq, lanes,
                                 carry, state)
        skip = wide(normal("skip", (heads, count), "heads", "head_dim"))[..., None, None]
        y = (y.reshape(products.shape) + skip * products).astype(x.dtype)
        y = jnp.einsum("bthck,bthckv->bthcv", apart(query), y).reshape(x.shape)
        out = Dense((self.width,), ("width",), ("channels",), use_bias=True,
                    scale=self.output_scale, name="out")(y)
        return out, None if state is None else after.replace(conv=tail)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> LtiState:
        tail = conv.init_state(batch, self.state_dim, self.width, dtype)
        return self.empty_state(batch, max_length, self.state_dim // 2, conv=tail)
