"""Rows grouped for comparison: an arm is a scheme on a mixer, its runs differ by seed only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lcx.eval.statistics import Estimate, t_interval
from lcx.study.names import Arm, alone

Row = Mapping[str, Any]
SAME, CURVE, UNIGRAM = "same_target", "position_curve", "unigram"  # the methods that are drawn


@dataclasses.dataclass(frozen=True)
class Point:
    """An arm at one length. estimate: over documents (one seed) or Student's t over seeds.

    seeds: the value of each seed; low, high: the interval over documents, averaged over seeds;
    status: ok, or why there is no value (oom, nan, refused, unimplemented).
    """

    length: int
    estimate: Estimate | None
    seeds: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    status: str = "ok"


def arm_of(row: Row) -> Arm:
    """Its arm: as `lcx.study.distinct.distinguish` named it beside others, else by itself."""
    return row.get("arm") or alone(str(row["position"]), str(row["mixer"]),
                                   str((row.get("extra") or {}).get("label") or ""))


def version_of(row: Row) -> str:
    """The code behind a row; that of the training too where it was another."""
    version, trained = row["code_version"], (row.get("extra") or {}).get("trained_with")
    dirty = " (dirty)" if row["dirty"] and "dirty" not in str(version) else ""
    return f"{version}{dirty}" + (f", trained with {trained}" if trained not in (None, "", version)
                                  else "")


def arms(rows: Iterable[Row]) -> list[Arm]:
    return sorted({arm_of(row) for row in rows})


def curves(rows: Iterable[Row], metric: str, method: str = SAME) -> dict[Arm, list[Point]]:
    """For each arm its points by length."""
    cells: dict[Arm, dict[int, list[Row]]] = {}
    for row in rows:
        if row["metric"] == metric and row["method"] == method:
            cells.setdefault(arm_of(row), {}).setdefault(row["length"], []).append(row)
    return {arm: [_point(length, cells[arm][length]) for length in sorted(cells[arm])]
            for arm in sorted(cells)}


def baseline(rows: Iterable[Row]) -> Row | None:
    """The unigram model's bits per byte: the same targets for all, so any row of it will do."""
    found = [row for row in rows if row["method"] == UNIGRAM and row["value"] is not None]
    return found[0] if found else None


def train_lengths(rows: Iterable[Row]) -> list[int]:
    return sorted({row["train_length"] for row in rows})


def _point(length: int, rows: list[Row]) -> Point:
    good = [row for row in rows if row["value"] is not None]
    # A mean over the seeds that survived would flatter the arm: one bad seed empties the cell.
    if len(good) < len(rows):
        bad = next(row for row in rows if row["value"] is None)
        return Point(length, None, status=(bad.get("extra") or {}).get("status", "missing"))
    values = tuple(row["value"] for row in good)
    low, high = _mean([row["low"] for row in good]), _mean([row["high"] for row in good])
    over = t_interval(values) if len(good) > 1 else Estimate(values[0], low, high)
    return Point(length, over, values, low, high)


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
