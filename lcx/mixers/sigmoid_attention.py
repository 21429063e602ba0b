"""Sigmoid attention: each key is weighed by itself, no row is normalised."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax.numpy as jnp

from lcx.domains import Finite
from lcx.mixers.attention import Attention
from lcx.ops.attention.weights import Sigmoid
from lcx.types import wide_dtype


class SigmoidAttention(Attention):
    """Sigmoid self-attention (arXiv:2409.04431): o_i = sum_j sigmoid(z_ij + offset) v_j.

    offset: -log(train_length) if None, with which a row of that length starts at a weight near 1 in
    all; it is a constant, so that a longer text reads the same weights and more of them. Bias and
    temperature act inside the sigmoid, where a constant of a row counts. The paper trains it with
    QK-norm and a norm after the layer.
    """

    offset: Finite | None = None

    paper: ClassVar[str] = "arXiv:2409.04431"
    examples: ClassVar[tuple[dict, ...]] = (dict(num_kv_heads=2), dict(offset=-1.0, qk_norm=True))

    def options(self) -> dict[str, Any]:
        offset = -math.log(self.train_length) if self.offset is None else self.offset
        return dict(normaliser=Sigmoid(jnp.asarray(offset, wide_dtype())))
