"""How token files are cut into rows of `train_length`: one packing per file.

A packing has `segments` (whether rows carry segment ids) and `plan(offsets, train_length) -> Plan`.
A plan is random access and deterministic: `len(plan)` rows, `plan.spans(row) -> [(start, length)]`
where a span is a run of *input* tokens whose targets are the same run one token later. Shuffling,
epochs and processes are the business of `lcx.data.batches`, so a packing needs no state.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Plan(Protocol):
    """The rows of one split."""

    def __len__(self) -> int: ...

    def spans(self, row: int) -> list[tuple[int, int]]: ...

    def describe(self) -> dict[str, Any]: ...


class Packing(Protocol):
    """A way to cut documents into rows."""

    segments: bool

    def plan(self, offsets: np.ndarray, train_length: int) -> Plan: ...
