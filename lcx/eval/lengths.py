"""Two numbers out of a curve: how far a model stays as good, and how far it still improves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lcx.errors import ConfigError
from lcx.eval.statistics import Estimate

STABLE_WITHIN = 0.02  # bpb


@dataclasses.dataclass(frozen=True)
class Length:
    """A context length; `at_least` where the longest context that was measured still qualifies."""

    value: int | None
    at_least: bool = False


def contexts(train_length: int, max_factor: int) -> list[int]:
    """Context lengths of a ladder: L/4, L/2, L ... max_factor L by doubling, and 3L/4.

    With a block of L/4 targets behind it, 3L/4 is the rung whose whole window is exactly the train
    length. Raises ConfigError unless 4 divides L and max_factor is a power of two.
    """
    if train_length < 4 or train_length % 4:
        raise ConfigError(f"train_length={train_length} must be a multiple of 4: target blocks "
                          "are a quarter of it")
    if max_factor < 1 or max_factor & (max_factor - 1):
        raise ConfigError(f"max_factor={max_factor} must be a power of two: 1, 2, 4, 8 ...")
    doubling = [train_length // 4 * 2**k for k in range((4 * max_factor).bit_length())]
    return sorted([*doubling, train_length * 3 // 4])


def needed_tokens(train_length: int, max_factor: int) -> int:
    """Tokens that a document needs to serve the whole ladder: the longest context and a block."""
    return contexts(train_length, max_factor)[-1] + train_length // 4


def stable_length(gaps: Mapping[int, Estimate], *, train_length: int, asked: int,
                  within: float = STABLE_WITHIN) -> Length:
    """Largest context c such that G(c') <= `within` for all L <= c' <= c, by its upper limit.

    gaps: G by context, of the rungs that finished; asked: the longest context asked for. The value
    is None where the gap at L is missing or has no interval.
    """
    length, context = None, train_length
    while context in gaps and gaps[context].high is not None and gaps[context].high <= within:
        length, context = context, 2 * context
    return Length(length, at_least=length is not None and length == asked)


def useful_length(steps: Mapping[int, Estimate], *, asked: int) -> Length:
    """Largest context c with bpb(c) significantly below bpb(c/2); None where there is none.

    steps: paired difference bpb(c) - bpb(c/2) by c.
    """
    better = [c for c, step in steps.items() if step.high is not None and step.high < 0.0]
    length = max(better, default=None)
    return Length(length, at_least=length is not None and length == asked)
