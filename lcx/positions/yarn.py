"""YaRN: fast pairs stay, slow pairs are interpolated, a ramp between, and a sharper softmax."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from lcx.errors import ConfigError
from lcx.lanes import Rotation, Sequence
from lcx.positions.rope import Rope


class Yarn(Rope):
    """YaRN (arXiv:2309.00071) for a checkpoint trained on `original_length` tokens.

    factor: s, length wanted / original_length (train_length if None); 1 is RoPE. A pair that
    turned more than beta_fast times over the original length keeps its frequency, one that turned
    less than beta_slow times is divided by s; truncate rounds the ends of the ramp to whole pairs
    (gpt-oss does not). cos and sin grow by g = 0.1 ln s + 1, so that logits grow by g^2: never
    scale the softmax as well. attention_factor: g itself; mscale and mscale_all_dim (DeepSeek),
    if both are set: g = m(mscale) / m(mscale_all_dim) with m(c) = 0.1 c ln s + 1.
    """

    factor: float = 4.0
    original_length: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    paper: ClassVar[str] = "arXiv:2309.00071"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(truncate=False, attention_factor=1.3))

    def numbers(self) -> dict[str, np.ndarray]:
        return {**super().numbers(), "amplitude": np.array(self.amplitude())}

    def rotation(self, seq: Sequence) -> Rotation:
        return super().rotation(seq).replace(amplitude=self.number("amplitude"))

    def ladder(self) -> np.ndarray:
        theta, (low, high) = super().ladder(), self.ends()
        ramp = np.clip((np.arange(len(theta)) - low) / (high - low), 0.0, 1.0)
        return theta * (1.0 - ramp) + theta / self.factor * ramp

    def ends(self) -> tuple[float, float]:
        """First and last pair of the ramp; the upper bound is d-1, as published."""
        if self.factor < 1:
            raise ConfigError(f"yarn extends: factor must be at least 1, not {self.factor}")
        length = self.original_length or self.site.train_length
        pair = lambda turns: (self.width * math.log(length / (2 * math.pi * turns))
                              / (2 * math.log(self.base)))
        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        return low, high if high > low else low + 0.001

    def amplitude(self) -> float:
        """g, the factor of cos and sin."""
        m = lambda scale: 0.1 * scale * math.log(self.factor) + 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return m(self.mscale) / m(self.mscale_all_dim)
        return m(1.0)
