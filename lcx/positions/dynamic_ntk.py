"""Dynamic NTK: NTK-aware scaling by the length of the request at hand."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from lcx.lanes import Rotation, Sequence, split_frequency
from lcx.positions.ntk import exponent
from lcx.positions.rope import Rope
from lcx.types import wide


class DynamicNtk(Rope):
    """Dynamic NTK (described in arXiv:2309.00071): base x (s L/L0 - (s-1))^(d/(d-2)), s = factor.

    L is the length that the request was told (Sequence.length), constant over it: within the
    length trained on this is RoPE. original_length: L0, train_length if None. Frequencies are
    computed in the graph, so they carry the rounding of its precision (1e-7 in float32).
    """

    factor: float = 1.0
    original_length: int | None = None

    paper: ClassVar[str] = "arXiv:2309.00071"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(factor=2.0))

    def numbers(self) -> dict[str, np.ndarray]:
        original = self.original_length or self.site.train_length
        return {"ladder": self.ladder(), "original_length": np.array(float(original))}

    def rotation(self, seq: Sequence) -> Rotation:
        ratio = wide(seq.length) / self.number("original_length")
        growth = jnp.maximum(self.factor * ratio - (self.factor - 1), 1.0)
        # base^(-2m/d) x growth^(-2m/(d-2)), without the power of a huge base
        slower = -2.0 * exponent(self.width) * np.arange(self.width // 2) / self.width
        frequency = split_frequency(self.number("ladder") * growth ** wide(slower))
        return Rotation(frequency, interleaved=self.interleaved)
