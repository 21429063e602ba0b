"""Dynamic NTK: NTK-aware scaling by the length of the request at hand."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, Positive
from lcx.lanes import Rotation, Sequence
from lcx.positions.in_double import in_double, joined
from lcx.positions.ntk import exponent
from lcx.positions.rope import Rope


class DynamicNtk(Rope):
    """Dynamic NTK (described in arXiv:2309.00071): base x (s L/L0 - (s-1))^(d/(d-2)), s = factor.

    L is the length that the request was told (Sequence.length), constant over it, so that no
    cached key goes stale: within the length trained on this is RoPE. original_length: L0,
    train_length if None. Checked against "dynamic" of transformers, which never shrinks the base
    again between L0 and the longest call so far; here each request has its own.
    """

    factor: Positive = 1.0
    original_length: Count | None = None

    paper: ClassVar[str] = "arXiv:2309.00071"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(factor=2.0))

    def numbers(self) -> dict[str, np.ndarray]:
        original = self.original_length or self.site.train_length
        return {**super().numbers(), "original_length": np.array(float(original))}

    def rotation(self, seq: Sequence) -> Rotation:
        # base^(-2m/d) x growth^(-2m/(d-2)), without the power of a huge base
        slower = -2.0 * exponent(self.width) * np.arange(self.width // 2) / self.width

        def frequencies(parts, length, original):
            growth = jnp.maximum(self.factor * length / original - (self.factor - 1), 1.0)
            return joined(parts) * growth ** slower

        frequency = in_double(frequencies, self.number("frequency"), seq.length,
                              self.number("original_length"))
        return Rotation(frequency, interleaved=self.interleaved)
