"""Multi-query associative recall: pairs of keys and values, then some of the keys again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcx.domains import Count, Positive, whole
from lcx.errors import ConfigError
from lcx.tasks import Rows


@dataclass(frozen=True)
class Mqar:
    """MQAR (Zoology, arXiv:2312.04927): recall the value of each key when the key comes again.

    A row begins with `pairs` pairs of key and value, each key once and each value once. Behind them
    each key comes once more, at an even offset; the target there is its value, which never follows
    in the row itself. Offsets are drawn without replacement with p(i) proportional to i^(power-1),
    i counting pairs of tokens from 1: power 1 is uniform, near 0 most queries come early. All
    other places hold a random token (`filler`) that is no key of the row, or token 0. Keys are
    tokens 1 .. V/2 - 1, values V/2 .. V-1. A longer row has as many pairs, and more filler between
    them and the queries.

    Unlike there, every training row is new (there: 100,000 rows, for 64 epochs), and filler never
    repeats a key (there V = 8192 makes that rare; at a small V it would overwrite what a recurrent
    mixer rightly remembers).
    """

    vocab_size: Annotated[int, whole(4)] = 256
    pairs: Count = 8
    power: Positive = 0.01
    filler: bool = True

    @property
    def chance(self) -> float:
        """One of the values of the row, each of which answers one query."""
        return 1.0 / self.pairs

    def check(self, length: int) -> None:
        if not 1 <= self.pairs < self.vocab_size // 2:
            raise ConfigError(f"mqar: pairs={self.pairs} must be between 1 and the number of keys, "
                              f"{self.vocab_size // 2 - 1} of vocab_size={self.vocab_size}")
        if length % 2 or length < 4 * self.pairs:
            raise ConfigError(f"mqar: a row of {length} tokens must be even and hold {self.pairs} "
                              f"pairs and as many queries: take {4 * self.pairs} tokens or more, or"
                              " fewer pairs")
        if self.power <= 0:
            raise ConfigError(f"mqar: power={self.power} must be positive; 1 is uniform")

    def rows(self, draw: np.random.Generator, count: int, length: int, *,
             training: bool = False) -> Rows:
        half, pairs = self.vocab_size // 2, self.pairs
        keys = 1 + _choose(draw, np.zeros(half - 1), count, pairs)
        values = half + _choose(draw, np.zeros(self.vocab_size - half), count, pairs)
        places = np.arange(1, (length - 2 * pairs) // 2 + 1)
        at = 2 * pairs + 2 * _choose(draw, (self.power - 1) * np.log(places), count, pairs)
        inputs = draw.integers(self.vocab_size, size=(count, length), dtype=np.int32)
        inputs *= self.filler & ~(inputs[:, :, None] == keys[:, None]).any(-1)
        inputs[:, 0:2 * pairs:2], inputs[:, 1:2 * pairs:2] = keys, values
        targets, answers = np.zeros_like(inputs), np.zeros(inputs.shape, bool)
        np.put_along_axis(inputs, at, keys.astype(np.int32), axis=1)
        np.put_along_axis(targets, at, values.astype(np.int32), axis=1)
        np.put_along_axis(answers, at, True, axis=1)
        return Rows(inputs, targets, answers)


def _choose(draw: np.random.Generator, log_weight: np.ndarray, count: int, take: int) -> np.ndarray:
    """`take` indices of log_weight [N] without replacement, in the order drawn: [count, take].

    The largest of log_weight + Gumbel noise are distributed as draws one after the other, each in
    proportion to the weights that are left.
    """
    noisy = log_weight + draw.gumbel(size=(count, len(log_weight)))
    return np.argsort(-noisy, axis=1)[:, :take]
