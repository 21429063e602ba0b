"""Gap against tokens seen: how extrapolation comes and goes during training."""

from __future__ import annotations

from collections.abc import Sequence

from lcx.study.arms import Arm, Point, Row, arm_of, arms
from lcx.study.distinct import repeated
from lcx.study.figures.canvas import Plot
from lcx.study.figures.lengths import band, bands_said
from lcx.study.figures.style import LINE, handles, styles
from lcx.study.figures.words import words
from lcx.study.gaps import longest, rises


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Where runs were tested at several checkpoints; one line per arm."""
    found = trajectories(repeated(rows))
    if not any(len(points) > 1 for points in found.values()):
        return []
    looks, context = styles(arms(rows)), longest(repeated(rows))

    def paint(axes) -> None:
        for arm, points in found.items():
            x = [p.length for p in points]
            axes.plot(x, [p.estimate.value for p in points], linewidth=1.5, markersize=4.5,
                      **looks[arm])
            band(axes, x, points, looks[arm]["color"])
        axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(_engineering())
        axes.set_xlabel("training tokens seen")
        axes.set_ylabel(words(f"rise at {context} (bits per byte)"))

    caption = (f"The rise at {context} tokens of context at each checkpoint that was tested, "
               "against the training tokens seen by then. All other figures show the last "
               f"checkpoint. {bands_said([p for points in found.values() for p in points])}")
    return [Plot("tokens", "Gap against training tokens", caption.strip(), paint,
                 lambda: handles(found, looks))]


def trajectories(rows: Sequence[Row]) -> dict[Arm, list[Point]]:
    """For each arm its rise at each checkpoint; a point's `length` is the tokens seen."""
    context = longest(rows)
    steps: dict[int, list[Row]] = {}
    for row in rows:
        if isinstance(row["train_tokens"], (int, float)):
            steps.setdefault(row["checkpoint_step"], []).append(row)
    found: dict[Arm, list[Point]] = {}
    for step in sorted(steps):
        for gap in rises(steps[step], context):
            if gap.estimate is not None:
                seen = max(row["train_tokens"] for row in steps[step]
                           if arm_of(row) == gap.arm)
                single = len(gap.seeds) == 1
                found.setdefault(gap.arm, []).append(
                    Point(int(seen), gap.estimate, gap.seeds,
                          gap.estimate.low if single else None,
                          gap.estimate.high if single else None))
    return found


def _engineering():
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")
