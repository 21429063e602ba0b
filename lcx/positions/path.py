"""PaTH: between key and query lies one Householder map per token, read from the content."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count
from lcx.layers import Dense
from lcx.ops import conv
from lcx.positions import Position
from lcx.types import wide, wide_dtype
from lcx.weights import matrix


class Path(Position):
    """PaTH attention (arXiv:2505.16381): z_ij = k_j^T H_{j+1} ... H_i q_i, H = I - beta w w^T.

    Per key head, w = unit(silu(conv(project(x)))) and beta = 2 sigmoid(x . u + b), in (0,2): 1
    erases the direction w from all earlier keys, 2 reflects it. Delta rules own the same map.
    rank: bottleneck of the projection, None for a full one; window: tokens that the causal
    convolution reads, None for no convolution.
    """

    rank: Count | None = 32
    window: Count | None = 3

    structure: ClassVar[str] = "PATH"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(rank=None, window=None))
    paper: ClassVar[str] = "arXiv:2505.16381"
    content: ClassVar[bool] = True
    represents: ClassVar[bool] = True

    def init_carry(self, batch: int) -> Any:
        """The convolution's tail."""
        if self.window is None:
            return ()
        channels = self.site.num_kv_heads * self.site.rotary_dim
        return conv.init_state(batch, self.window, channels, wide_dtype())

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        shape, axes = (self.site.num_kv_heads, self.site.rotary_dim), ("kv_heads", "head_dim")
        if self.rank is None:
            vector = Dense(shape, axes, name="vector")(x)
        else:
            narrow = Dense((self.rank,), ("rank",), name="narrow")(x)
            vector = Dense(shape, axes, ("rank",), name="vector")(narrow)
        vector = wide(vector)
        if self.window is not None:
            init = nn.initializers.normal(1 / math.sqrt(self.window))
            kernel = self.param("conv", matrix(init, ("kernel", *axes)),
                                (self.window, *shape))
            flat, carry = conv.short_conv(vector.reshape(*x.shape[:2], -1),
                                          kernel.reshape(self.window, -1), state=carry,
                                          segment=seq.segment)
            vector = flat.reshape(vector.shape)
        vector = jax.nn.silu(vector)
        vector *= jax.lax.rsqrt(jnp.sum(vector**2, -1, keepdims=True) + 1e-6)
        beta = Dense(shape[:1], axes[:1], use_bias=True, exact=True, name="beta")(x)
        return L.Lanes(L.Householder(vector, 2 * jax.nn.sigmoid(wide(beta)))), carry
