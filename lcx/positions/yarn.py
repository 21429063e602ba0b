"""YaRN: fast pairs stay, slow pairs are interpolated, a ramp between, and a sharper softmax."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import AtLeastOne, Base, Count, NonNegative, Positive
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Rotation, Sequence, Temperature
from lcx.positions.rope import Rope


class Yarn(Rope):
    """YaRN (arXiv:2309.00071) for a checkpoint trained on `original_length` tokens.

    factor: s, length wanted / original_length (train_length if None); 1 is RoPE. A pair that
    turned more than beta_fast times over the original length keeps its frequency, one that turned
    less than beta_slow times is divided by s; truncate rounds the ends of the ramp to whole pairs
    (gpt-oss does not). cos and sin grow by g = 0.1 ln s + 1, so that logits grow by g^2: never
    scale the softmax as well. attention_factor: g itself; mscale and mscale_all_dim, if both are
    set: g = m(mscale) / m(mscale_all_dim) with m(c) = 0.1 c ln s + 1.
    softmax_mscale: c of a temperature m(c)^2 on the *whole* logit, where cos and sin reach only
    the rotated channels. DeepSeek-V3: mscale = mscale_all_dim = softmax_mscale = 1, and factor 1
    unless the length wanted exceeds the original one.
    Checked against transformers ("yarn" in all its options, and DeepSeek-V3's softmax scale).
    """

    base: Base = 10000.0
    factor: AtLeastOne = 4.0
    original_length: Count | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True
    attention_factor: Positive | None = None
    mscale: NonNegative | None = None
    mscale_all_dim: NonNegative | None = None
    softmax_mscale: NonNegative | None = None

    paper: ClassVar[str] = "arXiv:2309.00071"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(truncate=False, attention_factor=1.3),
        dict(mscale=1.0, mscale_all_dim=1.0, softmax_mscale=1.0))

    def numbers(self) -> dict[str, np.ndarray]:
        found = {**super().numbers(), "amplitude": np.array(self.amplitude())}
        if self.softmax_mscale is not None:
            found["temperature"] = np.array(self.growth(self.softmax_mscale) ** 2)
        return found

    def rotation(self, seq: Sequence) -> Rotation:
        return super().rotation(seq).replace(amplitude=self.number("amplitude"))

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.softmax_mscale is None:
            return Lanes(self.rotation(seq)), carry
        factor = jnp.broadcast_to(self.number("temperature"), (*seq.order.shape, 1))
        return Lanes(self.rotation(seq), temperature=Temperature(factor)), carry

    def ladder(self) -> np.ndarray:
        theta, (low, high) = super().ladder(), self.ends()
        slow = ramp(low, high, len(theta))
        return theta * (1.0 - slow) + theta / self.factor * slow

    def ends(self) -> tuple[float, float]:
        """First and last pair of the ramp."""
        if self.factor < 1:
            raise ConfigError(f"yarn extends: factor must be at least 1, not {self.factor}")
        # L0 is the length *trained on*: with an already extended one the ramp is wrong
        length = self.original_length or self.site.train_length
        return ends(self.beta_fast, self.beta_slow, self.width, self.base, length, self.truncate)

    def amplitude(self) -> float:
        """g, the factor of cos and sin."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.growth(self.mscale) / self.growth(self.mscale_all_dim)
        return self.growth(1.0)

    def growth(self, scale: float) -> float:
        """m(scale) = 0.1 scale ln s + 1."""
        return 0.1 * scale * math.log(self.factor) + 1.0


def ends(fast: float, slow: float, width: int, base: float, length: float,
         truncate: bool = True) -> tuple[float, float]:
    """The pairs that turn `fast` and `slow` times over `length` tokens, as ends of a ramp.

    truncate rounds outwards to whole pairs. The upper bound is d-1 although there are d/2 pairs,
    and ends that meet are set 0.001 apart: as published.
    """
    pair = lambda turns: width * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))
    low, high = pair(fast), pair(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return low, high if high > low else low + 0.001


def ramp(low: float, high: float, pairs: int) -> np.ndarray:
    """From 0 at pair `low` to 1 at pair `high` [pairs]."""
    return np.clip((np.arange(pairs) - low) / (high - low), 0.0, 1.0)
