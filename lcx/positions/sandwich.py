"""Sandwich: the inner product of two sinusoidal positions, as a bias."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import AtLeastOne, NonNegative, whole
from lcx.lanes import Lanes, Rotation, Sequence, Toeplitz, phase, split_frequency
from lcx.positions import Position
from lcx.types import wide


class Sandwich(Position):
    """Sandwich (arXiv:2212.10356): B_ij = scale x sum over m = 1..dim/2 of cos((id_i - id_j) f_m).

    f_m = base^(-2m/dim), m from 1: p_i . p_j of sinusoidal positions, so it equals attention with
    sqrt(scale) p appended to queries and keys. No parameters.
    centred: minus scale x dim/2, so that B_ii = 0: the same softmax; un-normalised linear mixers
    need it, since exp(64) is not a weight. compress: head h = 1..H divides by 8h/H. Both are what
    NVIDIA NeMo's port does (sandwich_relative_position_embedding.py, read); the authors' own
    listing of the division was not. Without it the bias, up to dim/2, drowns the content at first.
    """

    scale: NonNegative = 1.0
    dim: Annotated[int, whole(2)] = 128
    base: AtLeastOne = 10000.0
    centred: bool = False
    compress: bool = False

    structure: ClassVar[str] = "TOEP"
    paper: ClassVar[str] = "arXiv:2212.10356"
    examples: ClassVar[tuple[dict, ...]] = (dict(dim=16, centred=True), dict(compress=True))

    def numbers(self) -> dict[str, np.ndarray]:
        heads = self.site.num_heads
        ratio = 8.0 * np.arange(1, heads + 1) / heads if self.compress else np.ones(heads)
        ladder = self.base ** (-2.0 * np.arange(1, self.dim // 2 + 1) / self.dim)
        return {"frequency": split_frequency(ladder), "gain": self.scale / ratio,
                "centre": np.array(self.dim // 2 if self.centred else 0.0)}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        params = {name: self.number(name) for name in ("frequency", "gain", "centre")}
        return Lanes(bias=(Toeplitz(params, waves),)), carry


def waves(params, distance):
    """Distances [...] -> [..., H]. One wave after another: no array over pairs and frequencies."""
    def add(total, frequency):
        angle = phase(Rotation(frequency[:, None]), wide(distance)[..., None])[..., 0]
        return total + jnp.cos(angle), None

    start = jnp.zeros(jnp.shape(distance), params["gain"].dtype) - params["centre"]
    total, _ = jax.lax.scan(add, start, jnp.moveaxis(params["frequency"], 1, 0))
    return total[..., None] * params["gain"]
