"""Copying: a string of random tokens, a separator, and the same string again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcx.domains import Count, whole
from lcx.errors import ConfigError
from lcx.tasks import Rows

PAD, SEPARATOR = 0, 1


@dataclass(frozen=True)
class Copy:
    """Copying a string (arXiv:2402.01032): s_1 .. s_n, a separator, s_1 .. s_n.

    The answers are the tokens of the second string. Tokens are uniform over 2 .. vocab_size - 1; 0
    pads and 1 separates. A row of T tokens takes a string of n = T // 2. shortest: in training n is
    uniform in shortest .. T // 2, row by row (None: always T // 2); a test is always at T // 2.
    """

    vocab_size: Annotated[int, whole(3)] = 32
    shortest: Count | None = None

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab_size - 2)

    def check(self, length: int) -> None:
        if self.vocab_size < 3:
            raise ConfigError(f"copy: vocab_size={self.vocab_size} must be 3 or more: padding, the "
                              "separator and what is copied")
        if length // 2 < (self.shortest or 1) or (self.shortest or 1) < 1:
            raise ConfigError(f"copy: a row of {length} tokens holds strings of up to {length // 2}"
                              f"; shortest={self.shortest} must be between 1 and that")

    def rows(self, draw: np.random.Generator, count: int, length: int, *,
             training: bool = False) -> Rows:
        longest = length // 2
        size = np.full((count, 1), longest)
        if training and self.shortest is not None:
            size = draw.integers(self.shortest, longest + 1, size=(count, 1))
        text = draw.integers(2, self.vocab_size, size=(count, longest), dtype=np.int32)
        place = np.arange(length + 1)
        again = (place > size) & (place <= 2 * size)
        source = np.where(again, place - size - 1, np.minimum(place, longest - 1))
        row = np.take_along_axis(text, source, axis=1)
        row = np.where(place == size, SEPARATOR, np.where(place > 2 * size, PAD, row))
        row = row.astype(np.int32)
        return Rows(row[:, :-1], row[:, 1:], again[:, 1:])
