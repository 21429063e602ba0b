"""What a report says of synthetic tasks: accuracy by length, the best arms first."""

from __future__ import annotations

from collections.abc import Sequence

from lcx.eval.exact import METHOD
from lcx.study.arms import Arm, Point, Row, arm_of, curves, train_lengths
from lcx.study.cells import anchor, name, number

WORDS = {"accuracy": "Accuracy per answer", "sequence_accuracy": "Rows with every answer right"}
Table = tuple[list[str], list[list[str]]]  # as in `tables`


def by_length(rows: Sequence[Row], metric: str = "accuracy", *, intervals: bool = False) -> Table:
    """A metric of each arm at each length of row, beside what a guess would reach."""
    found = curves(rows, metric, METHOD)
    lengths = sorted({p.length for points in found.values() for p in points})
    trained, chance = train_lengths(rows), chances(rows)
    header = ["arm", "chance", *(f"{c}*" if c in trained else str(c) for c in lengths)]
    body = []
    for arm in sorted(found, key=lambda arm: _rank(found[arm], trained)):
        at = {p.length: p for p in found[arm]}
        cells = [_cell(arm, at.get(c), metric, intervals) for c in lengths]
        body.append([name(arm), f"{chance[arm]:.3f}", *cells])
    return header, body


def chances(rows: Sequence[Row]) -> dict[Arm, float]:
    """The accuracy of a guess on each arm's task."""
    return {arm_of(row): row["extra"]["chance"] for row in rows if row["method"] == METHOD}


def summary(rows: Sequence[Row]) -> str:
    """How many arms solve their task, in a sentence; empty where no task was measured."""
    found, trained = curves(rows, "accuracy", METHOD), train_lengths(rows)
    if not found:
        return ""
    longest = max(p.length for points in found.values() for p in points)
    solved = [_solved(points, trained) for points in found.values()]
    beyond = [_solved(points, [longest]) for points in found.values()]
    return (f"Of {len(found)} arms {sum(solved)} answer 99% right at the train length, and "
            f"{sum(beyond)} at {longest} tokens.")


def _solved(points: Sequence[Point], lengths: Sequence[int]) -> bool:
    return any(p.length in lengths and p.estimate and p.estimate.value >= 0.99 for p in points)


def _rank(points: Sequence[Point], trained: Sequence[int]):
    """At the train length to two digits, then at the longest: better first, no value last."""
    value = lambda p: p.estimate.value if p.estimate else -1.0
    short = max([value(p) for p in points if p.length in trained], default=-1.0)
    return -round(short, 2), -value(points[-1])


def _cell(arm: Arm, point: Point | None, metric: str, interval: bool) -> str:
    if point is None:
        return ""
    return number(point.estimate, interval=interval, status=point.status,
                  title=f"{arm.label()}: {metric}, {METHOD}, rows of {point.length} tokens",
                  link=anchor(arm, metric, point.length))
