"""Gated MLP whose two maps are block-diagonal: the dimension mixer of Monarch Mixer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.weights import free, matrix


class BlockDiagonal(nn.Module):
    """W_out (gelu(a) * b), [a | b] = W_in x (M2-BERT, arXiv:2310.12109): [B,T,D] -> [B,T,D].

    Both maps are `num_blocks` dense blocks along the diagonal, so that each weighs 1 / num_blocks
    of a dense one; with an even number a reads the first half of the channels, b the second, and
    their product mixes the two. W_in has no bias, W_out has. hidden: of a and of b, four times the
    width by default. As everywhere, weights start normal with the variance of their fan-in.
    """

    width: int
    output_scale: float = 1.0
    hidden: Count | None = None
    num_blocks: Count = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.hidden or 4 * self.width
        if self.width % self.num_blocks or hidden % self.num_blocks:
            raise ConfigError(f"num_blocks={self.num_blocks} must divide width={self.width} and "
                              f"hidden={hidden}")
        first, second = jnp.split(self._map("in", x, 2 * hidden, 1.0, ("width", "mlp")), 2, -1)
        y = self._map("out", nn.gelu(first, approximate=False) * second, self.width,
                      self.output_scale, ("mlp", "width"))
        bias = self.param("bias", free(
            nn.initializers.zeros_init(), ("width",)), (self.width,))
        return y + bias.astype(x.dtype)

    def _map(self, name: str, x: jax.Array, outputs: int, scale: float, axes) -> jax.Array:
        blocks, inputs = self.num_blocks, x.shape[-1] // self.num_blocks
        kernel = self.param(f"{name}_kernel", matrix(
            nn.initializers.normal(scale * inputs**-0.5), (None, *axes)),
            (blocks, inputs, outputs // blocks))
        y = jnp.einsum("btni,nio->btno", x.reshape(*x.shape[:-1], blocks, inputs),
                       kernel.astype(x.dtype))
        return y.reshape(*x.shape[:-1], outputs)
