"""LongRoPE: every pair is slowed by a searched factor of its own, once the text is long."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np

from lcx.domains import Positive, whole
from lcx.errors import ConfigError
from lcx.lanes import Rotation, Sequence, split_frequency
from lcx.positions.in_double import in_double, joined
from lcx.positions.rope import Rope


class LongRope(Rope):
    """LongRoPE (arXiv:2402.13753): theta_m / lambda_m with arrays found by a search.

    short, long: lambda of each pair, or one number for all. A request that was told at most
    `original_length` tokens (L0; train_length if None) takes `short`, a longer one `long` (the
    default is the PI that the search starts from; released models bring their arrays). dynamic:
    lambda(L) = 1 + (long - 1) (L/L0 - 1) / (factor - 1) instead of both, with L at least L0.
    factor: s, target length / L0. In either regime cos and sin grow by attention_factor, or
    sqrt(1 + ln s / ln L0). The length is told once per request, so no cached key goes stale.
    Checked against "longrope" of transformers and microsoft/LongRoPE (rope/longrope.py), whose
    dynamic lambda falls below 1 on short texts; its Mixed variant is `long_rope_mixed`.
    """

    short: Positive | tuple[Positive, ...] = 1.0
    long: Positive | tuple[Positive, ...] | None = None
    factor: Positive = 4.0
    original_length: Annotated[int, whole(2)] | None = None
    dynamic: bool = False
    attention_factor: Positive | None = None

    paper: ClassVar[str] = "arXiv:2402.13753"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(dynamic=True, original_length=8))

    def numbers(self) -> dict[str, np.ndarray]:
        theta, long = self.ladder(), self.factor if self.long is None else self.long
        found = {"amplitude": np.array(self.amplitude()),
                 "original_length": np.array(float(self.trained))}
        if self.dynamic:
            return {**found, "frequency": split_frequency(theta),
                    "long": split_frequency(self.each(long))}  # split: the same precision
        return {**found, "short": split_frequency(theta / self.each(self.short)),
                "long": split_frequency(theta / self.each(long))}

    def rotation(self, seq: Sequence) -> Rotation:
        original, long = self.number("original_length"), self.number("long")
        if self.dynamic:
            frequency = in_double(self.interpolated, self.number("frequency"), long, seq.length,
                                  original)
        else:
            frequency = jnp.where(seq.length > original, long, self.number("short"))
        return Rotation(frequency, self.number("amplitude"), interleaved=self.interleaved)

    def interpolated(self, parts, long, length, original):
        """theta / lambda(L) [P]."""
        grown = (jnp.maximum(length / original, 1.0) - 1.0) / (self.factor - 1.0)
        return joined(parts) / (1.0 + (joined(long) - 1.0) * grown)

    @property
    def trained(self) -> int:
        return self.original_length or self.site.train_length

    def each(self, value: float | tuple[float, ...]) -> np.ndarray:
        """lambda [P]. Raises ConfigError unless there is a positive one for each pair."""
        pairs = self.width // 2
        array = np.atleast_1d(np.asarray(value, np.float64))
        if array.shape not in ((1,), (pairs,)) or (array <= 0).any():
            raise ConfigError("long_rope needs a positive factor, or one for each of "
                              f"{pairs} pairs; there are {array.size}, the least is {array.min()}")
        return np.broadcast_to(array, (pairs,)).copy()

    def amplitude(self) -> float:
        """g, the factor of cos and sin."""
        if self.dynamic and self.factor <= 1:
            raise ConfigError(f"a dynamic long_rope needs a factor above 1, not {self.factor}")
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.trained))
