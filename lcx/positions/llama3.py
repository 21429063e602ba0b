"""Llama-3.1's scaling: short wavelengths stay, long ones are interpolated, a blend between."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Count, NonNegative, Positive
from lcx.errors import ConfigError
from lcx.positions.rope import Rope


class Llama3(Rope):
    """RoPE scaling of Llama 3.1 (arXiv:2407.21783) for a model trained on `original_length`.

    A pair with more than high_freq turns over the original length (train_length if None) keeps
    its frequency, one with fewer than low_freq is divided by factor, and between them the share
    of the kept frequency grows linearly with the number of turns. Llama 3.1: base 5e5, factor 8
    (32 in the small models), low_freq 1, high_freq 4, original_length 8192; factor 1 is RoPE.
    Checked against "llama3" of transformers. (One public code has high_freq 32: another model.)
    """

    factor: Positive = 8.0
    low_freq: NonNegative = 1.0
    high_freq: Positive = 4.0
    original_length: Count | None = None

    paper: ClassVar[str] = "arXiv:2407.21783"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(original_length=100))

    def ladder(self) -> np.ndarray:
        if self.high_freq <= self.low_freq:
            raise ConfigError(f"llama3 blends between low_freq {self.low_freq} and a greater "
                              f"high_freq, not {self.high_freq}")
        theta = super().ladder()
        turns = theta * (self.original_length or self.site.train_length) / (2 * np.pi)
        kept = np.clip((turns - self.low_freq) / (self.high_freq - self.low_freq), 0.0, 1.0)
        return theta * kept + theta / self.factor * (1.0 - kept)
