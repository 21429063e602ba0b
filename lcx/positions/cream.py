"""CREAM: a head, a middle and a tail of a long text, each at the ids where it stands."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import ClassVar

import numpy as np

from lcx.domains import Ids, Positive
from lcx.errors import ConfigError
from lcx.lanes import Sequence
from lcx.positions import DataTransform, Position, moved_ids


class Cream(Position):
    """Continuity-relativity indexing (arXiv:2406.07138): a row of n tokens is made of three pieces
    of a text f times as long, f = max_length // train_length, at their own ids.

    Head and tail hold n // 3 tokens each or, on the toss of a coin, 4 f each; the head has ids
    0, 1, ..., the tail ends at f n - 1, and the middle ends at e ~ U{floor(h + (m-1) k/2) ..
    k/2 n - h - 1} for h tokens in the head and m in the middle; k, the factor of the middle, is
    floor of a normal number from 2 to 2 f (a draw through the cdf at 1000 points, so that what lies
    outside falls on the ends). mean and deviation of that normal: 9 and 3 in the authors' code
    (github.com/wutong4012/CREAM) for all f, though 9 is the middle only for f = 8; None takes
    1 + f. Text is gathered at the ids; where it is shorter, the middle comes from just before the
    tail. The coin is tossed for every row (the authors: once per 3000 documents). A piece of packed
    text too short for 8 f tokens has thirds. Evaluation does nothing.
    """

    max_length: Ids | None = None
    mean: Positive | None = 9.0
    deviation: Positive = 3.0

    paper: ClassVar[str] = "arXiv:2406.07138"

    def data_transform(self) -> DataTransform:
        length = self.site.train_length
        factor = (self.max_length or 8 * length) // length
        if factor < 1 or 8 * factor >= length:
            raise ConfigError(f"cream(max_length={self.max_length or 8 * length}) is {factor} times"
                              f" the {length} tokens of a row: take max_length >= train_length, and"
                              " a factor that leaves tokens between two ends of 4 x factor")
        return Pieces(length, factor, 1.0 + factor if self.mean is None else self.mean,
                      self.deviation)

    def remap(self, seq: Sequence, key=None) -> Sequence:
        return seq if key is None else moved_ids(seq, "cream")


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The text and the ids of one row."""

    train_length: int
    factor: int
    mean: float
    deviation: float

    def __call__(self, draw: np.random.Generator, length: int,
                 available: int) -> tuple[np.ndarray, np.ndarray]:
        total = self.factor * self.train_length
        available = min(available, total)
        ends = length // 3 if draw.integers(2) or 8 * self.factor >= length else 4 * self.factor
        middle = length - 2 * ends
        points, levels = normal(self.factor, self.mean, self.deviation)
        half = int(np.interp(draw.random(), levels, points)) / 2
        last = draw.integers(int(ends + (middle - 1) * half),
                             max(int(half * self.train_length) - ends - 1,
                                 int(ends + (middle - 1) * half)), endpoint=True)
        head, tail = np.arange(ends), np.arange(-ends, 0)
        inner = np.arange(last - middle + 1, last + 1)
        source = inner if last < available else np.arange(-middle, 0) + available - ends
        return (np.concatenate([head, source, available + tail]),
                np.concatenate([head, inner, total + tail]))


@functools.cache
def normal(factor: int, mean: float, deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """1000 points from 2 to 2 x factor, and the cdf there."""
    points = np.linspace(2.0, 2.0 * factor, 1000)
    cdf = statistics.NormalDist(mean, deviation).cdf
    return points, np.array([cdf(x) for x in points])
