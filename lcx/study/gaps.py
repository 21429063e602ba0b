"""What context past the train length costs each arm, and what an arm costs within it: paired."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtr

from lcx.errors import ConfigError
from lcx.eval.compare import difference
from lcx.eval.statistics import Estimate, holm, t_interval
from lcx.study.arms import SAME, Arm, Row, arm_of

APART = 0.1  # bits per byte between rise and G from which a reader is told


@dataclasses.dataclass(frozen=True)
class Gap:
    """An arm's difference in bits per byte, over documents (one seed) or over seeds (Student's t).

    context minus against: the two contexts. status says why there is no estimate.
    """

    arm: Arm
    context: int
    against: int | None
    estimate: Estimate | None
    seeds: tuple[float, ...] = ()
    status: str = "ok"


def longest(rows: Iterable[Row]) -> int:
    """The longest context that any arm was scored at; 0 where there is none."""
    return max((row["length"] for row in _bpb(rows)), default=0)


def rises(rows: Sequence[Row], context: int | None = None) -> list[Gap]:
    """Each arm's rise: bpb at `context` (the longest) minus bpb inside the train length.

    The reference is the last rung whose whole window, scored block included, was seen in training.
    G alone would flatter a model that breaks at once: at a context of L its block lies beyond L.
    Sorted, smallest first; arms without a value last.
    """
    rows = _bpb(rows)
    context = context or longest(rows)
    found = [_rise(arm, own, context) for arm, own in _by_arm(rows).items()]
    return sorted(found, key=lambda g: (g.estimate is None, g.estimate and g.estimate.value, g.arm))


def short_costs(rows: Sequence[Row]) -> tuple[Arm | None, dict[Arm, Gap]]:
    """bpb inside the train length minus that of the best arm there: (the best arm, costs).

    Runs of one seed are paired by target token.
    """
    cells = {arm: _cells(own, inside_context(own)) for arm, own in _by_arm(_bpb(rows)).items()}
    cells = {arm: cell for arm, cell in cells.items()
             if cell and all(row["value"] is not None for row in cell)}
    if not cells:
        return None, {}
    mean = lambda cell: sum(row["value"] for row in cell) / len(cell)
    best = min(cells, key=lambda arm: mean(cells[arm]))
    reference = {row["seed"]: row for row in cells[best]}
    found = {}
    for arm, cell in cells.items():
        if {row["seed"] for row in cell} == set(reference) and len(cell) == len(reference):
            over = combine([_paired(row, reference[row["seed"]]) for row in cell])
        else:  # other seeds: nothing to pair
            over = Estimate(mean(cell) - mean(cells[best]))
        found[arm] = Gap(arm, cell[0]["length"], cells[best][0]["length"], over)
    return best, found


def adjusted(gaps: Sequence[Gap], level: float = 0.05) -> dict[Arm, str]:
    """lower, tie or higher for each arm, after Holm's correction over all of them."""
    told = {gap.arm: "unknown" for gap in gaps if gap.estimate is not None}
    tested = [gap for gap in gaps if gap.estimate is not None and gap.estimate.p is not None]
    for gap, p in zip(tested, holm([gap.estimate.p for gap in tested])):
        sign = "lower" if gap.estimate.value < 0 else "higher"
        told[gap.arm] = "tie" if p > level else sign
    return told


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """One seed keeps its interval over documents; several get Student's t over the seeds."""
    if len(estimates) == 1:
        return estimates[0]
    values = np.array([e.value for e in estimates])
    error = values.std(ddof=1) / math.sqrt(len(values))
    student = -abs(values.mean()) / error if error else -math.inf
    p = 2 * float(stdtr(len(values) - 1, student)) if error else float(values.mean() == 0)
    return dataclasses.replace(t_interval(values), p=p)


def inside_context(rows: Iterable[Row]) -> int | None:
    """The longest context whose window, block included, is within the train length."""
    found = [row["length"] for row in _bpb(rows) if row["value"] is not None
             and row["length"] + (row["extra"] or {}).get("block", 0) <= row["train_length"]]
    return max(found, default=None)


def _rise(arm: Arm, rows: Sequence[Row], context: int) -> Gap:
    against = inside_context(rows)
    last, first = _cells(rows, context), {row["run"]: row for row in _cells(rows, against)}
    bad = [row for row in last if row["value"] is None]
    if bad or not last:
        status = (bad[0]["extra"] or {}).get("status", "missing") if bad else "not measured"
        return Gap(arm, context, against, None, status=status)
    if any(row["run"] not in first or first[row["run"]]["value"] is None for row in last):
        return Gap(arm, context, against, None, status="no rung inside the train length")
    each = [_paired(row, first[row["run"]]) for row in last]
    return Gap(arm, context, against, combine(each), tuple(e.value for e in each))


def _paired(row: Row, reference: Row) -> Estimate:
    """The difference of two rows; without sums per document it has no interval."""
    if row is reference:
        return Estimate(0.0, 0.0, 0.0, 1.0)
    try:
        return difference(row, reference)
    except ConfigError:
        return Estimate(row["value"] - reference["value"])


def _bpb(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["metric"] == "bpb" and row["method"] == SAME]


def _cells(rows: Iterable[Row], context: int | None) -> list[Row]:
    return [row for row in rows if row["length"] == context]


def _by_arm(rows: Iterable[Row]) -> dict[Arm, list[Row]]:
    found: dict[Arm, list[Row]] = {}
    for row in rows:
        found.setdefault(arm_of(row), []).append(row)
    return found
