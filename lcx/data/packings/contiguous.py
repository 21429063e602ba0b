"""Windows over all documents end to end: every row full, every token used once per epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lcx.errors import DataError


@dataclass(frozen=True)
class Contiguous:
    """Row i holds tokens [i*T, (i+1)*T) of the concatenated documents.

    A row may cross documents; the target across a boundary has weight 0. segments=False shows the
    model one document per row, as most language-model training does; segments=True gives each
    document its own segment, so that neither attention nor a state crosses.
    Raises DataError where all documents together are shorter than one row.
    """

    segments: bool = False

    def plan(self, offsets: np.ndarray, train_length: int) -> _Windows:
        """Cut [0, offsets[-1]) into rows; less than one row at the end is left out."""
        total = int(offsets[-1])
        if total < train_length + 1:
            raise DataError(f"train_length={train_length} is longer than the whole training split "
                            f"({total} tokens); lower train_length or add text")
        return _Windows(total, train_length)


@dataclass(frozen=True)
class _Windows:
    total: int
    train_length: int

    def __len__(self) -> int:
        return (self.total - 1) // self.train_length

    def spans(self, row: int) -> list[tuple[int, int]]:
        return [(row * self.train_length, self.train_length)]

    def describe(self) -> dict[str, Any]:
        used = len(self) * self.train_length
        return {"rows": len(self), "targets": used, "left_out": self.total - 1 - used, "padding": 0}
