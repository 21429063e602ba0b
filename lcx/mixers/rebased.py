"""ReBased: linear attention with a learned quadratic kernel."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support
from lcx.mixers.based import Based
from lcx.mixers.kernel_family import KERNEL_SUPPORTS
from lcx.types import wide
from lcx.weights import free


class Rebased(Based):
    """ReBased (arXiv:2402.10644): weights z^2 over their sum, z = q.k / sqrt(feature_dim).

    q and k pass one layer norm of each head (eps 1e-5) whose gain and bias they share, as in the
    published code: an affine map before a square is any quadratic function with a double root.
    A temperature is a factor of the whole row and cancels. Everything else as `based`.
    """

    family = "linear"
    coefficients = (0.0, 0.0, 1.0)
    paper: ClassVar[str] = "arXiv:2402.10644"
    supports = {**KERNEL_SUPPORTS, L.Temperature: Support((QUADRATIC, CHUNKED, STEP), code="R4",
                reason="a factor of a whole row cancels in the sum of the weights")}

    def prepared(self, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        param = lambda name, init: self.param(name, free(
            init, ("features",)), (self.feature_dim,))
        gain = param("norm_scale", nn.initializers.ones_init())
        shift = param("norm_bias", nn.initializers.zeros_init())

        def norm(x):
            y = wide(x)
            y = y - jnp.mean(y, -1, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
            return (y * gain + shift).astype(x.dtype)

        return norm(query), norm(key)
