"""First-fit packing: whole documents side by side in a row, each its own segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lcx.errors import DataError


@dataclass(frozen=True)
class FirstFit:
    """Each document, cut at train_length, goes into the first row that still has room for it.

    Every input and target is used exactly once per epoch; no target crosses a document; what no
    piece fills is padding (segment 0, weight 0). The plan is made once and is the same on every
    process, so that the state of an iterator stays one integer.
    """

    segments = True  # not an option

    def plan(self, offsets: np.ndarray, train_length: int) -> _Rows:
        """First fit in document order, O(pieces log rows). Raises DataError without any target."""
        starts, lengths = pieces(offsets, train_length)
        if not len(starts):
            raise DataError("no training document has two tokens, so there is nothing to predict; "
                            "add text")
        rows = first_fit(lengths, train_length)
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows))
        return _Rows(starts[order], lengths[order], ends, train_length)


def pieces(offsets: np.ndarray, train_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of runs of at most train_length inputs; n tokens hold n - 1 inputs."""
    pairs = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-pairs // train_length)
    document = np.repeat(np.arange(len(pairs)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = offsets[document] + number * train_length
    return starts, np.minimum(pairs[document] - number * train_length, train_length)


def first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Row of each piece: the lowest row with room, found in a tree of the largest room left."""
    size = 1
    while size < max(len(lengths), 1):
        size *= 2
    room = np.full(2 * size, capacity, np.int64).tolist()
    rows = np.zeros(len(lengths), np.int64)
    for i, length in enumerate(lengths.tolist()):
        node = 1
        while node < size:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[i] = node - size
        room[node] -= length
        while node > 1:
            node //= 2
            largest = max(room[2 * node], room[2 * node + 1])
            if room[node] == largest:
                break
            room[node] = largest
    return rows


@dataclass(frozen=True)
class _Rows:
    starts: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray
    train_length: int

    def __len__(self) -> int:
        return len(self.ends)

    def spans(self, row: int) -> list[tuple[int, int]]:
        take = slice(self.ends[row - 1] if row else 0, self.ends[row])
        return list(zip(self.starts[take].tolist(), self.lengths[take].tolist()))

    def describe(self) -> dict[str, Any]:
        used = int(self.lengths.sum())
        return {"rows": len(self), "targets": used, "left_out": 0,
                "padding": len(self) * self.train_length - used}
