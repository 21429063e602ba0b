"""Synthetic tasks: one small generator per file, found by its name (`data.task=dict(name="mqar")`).

A task is a frozen dataclass whose fields are its options in a config. It draws rows at any length
from a NumPy generator and holds no state, so that the same draw gives the same rows; who asks for
them (`lcx.data.generated`) derives the draw from seed, split and step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

PACKAGE = "lcx.tasks"


@dataclass(frozen=True)
class Rows:
    """What a model sees and should say, [N,T] each: inputs and targets int32; answers bool, where
    the target is an answer: only there a loss is taken and a prediction counts."""

    inputs: np.ndarray
    targets: np.ndarray
    answers: np.ndarray


class Task(Protocol):
    """A generator of rows. vocab_size: token ids are 0 .. vocab_size - 1; chance: the accuracy per
    answer of a guess among the tokens that can be one."""

    vocab_size: int

    @property
    def chance(self) -> float: ...

    def check(self, length: int) -> None:
        """Raise ConfigError where the task has no rows of `length` tokens."""

    def rows(self, draw: np.random.Generator, count: int, length: int, *,
             training: bool = False) -> Rows:
        """`count` rows of `length` tokens; in training they may vary where a test is at full
        length."""
