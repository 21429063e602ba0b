"""Windows inside documents: a row never sees two documents and needs no segment ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lcx.errors import DataError


@dataclass(frozen=True)
class WithinDocuments:
    """Each document is cut into full windows from its start; what is left at its end is left out.

    Short documents are therefore never seen: `describe()` says how many tokens that costs, which
    grows with train_length (use `contiguous` or `first_fit` to compare lengths on the same text).
    Raises DataError where no document fills one row.
    """

    segments = False  # not an option

    def plan(self, offsets: np.ndarray, train_length: int) -> _DocumentWindows:
        """Windows of train_length inputs; a document of n tokens holds (n - 1) // T of them."""
        pairs = np.maximum(np.diff(offsets) - 1, 0)  # the last token is a target only
        windows = pairs // train_length
        if not windows.any():
            longest = int(pairs.max(initial=-1)) + 1
            raise DataError(f"train_length={train_length} is longer than every training document "
                            f"(the longest has {longest} tokens and {train_length + 1} are needed);"
                            " lower train_length or use packing='contiguous' or 'first_fit'")
        return _DocumentWindows(offsets, train_length, np.cumsum(windows), int(pairs.sum()))


@dataclass(frozen=True)
class _DocumentWindows:
    offsets: np.ndarray
    train_length: int
    ends: np.ndarray  # rows up to and including each document
    pairs: int

    def __len__(self) -> int:
        return int(self.ends[-1])

    def spans(self, row: int) -> list[tuple[int, int]]:
        document = int(np.searchsorted(self.ends, row, side="right"))
        before = int(self.ends[document - 1]) if document else 0
        start = int(self.offsets[document]) + (row - before) * self.train_length
        return [(start, self.train_length)]

    def describe(self) -> dict[str, Any]:
        used = len(self) * self.train_length
        return {"rows": len(self), "targets": used, "left_out": self.pairs - used, "padding": 0}
