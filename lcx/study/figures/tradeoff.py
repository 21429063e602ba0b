"""Short cost against gap: what an arm gives up within the train length to hold up beyond it."""

from __future__ import annotations

from collections.abc import Sequence

from lcx.study.arms import Row, arms
from lcx.study.figures.canvas import Plot
from lcx.study.figures.style import LINE, handles, styles
from lcx.study.figures.words import words
from lcx.study.gaps import longest, rises, short_costs


def plots(rows: Sequence[Row]) -> list[Plot]:
    """One point per arm; the best arms lie at the lower left."""
    best, costs = short_costs(rows)
    points = [(costs[gap.arm], gap) for gap in rises(rows) if gap.estimate and gap.arm in costs]
    if len(points) < 2:
        return []
    looks, inside = styles(arms(rows)), costs[best].context
    drawn = sorted(gap.arm for _, gap in points)

    def paint(axes) -> None:
        for cost, gap in points:
            look = looks[gap.arm]
            axes.errorbar(cost.estimate.value, gap.estimate.value, yerr=_bars(gap.estimate),
                          xerr=_bars(cost.estimate), color=look["color"], marker=look["marker"],
                          markerfacecolor=look["markerfacecolor"], markersize=6, linewidth=1)
        axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
        axes.margins(0.06)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(words(f"short cost: bits per byte above {best.label()}, with {inside} "
                              "tokens of context (inside the train length)", 64, most=200))
        axes.set_ylabel(words(f"rise at {longest(rows)} (bits per byte)"))

    caption = (f"Across: bits per byte with {inside} tokens of context, all within the train "
               f"length, above the best arm there ({best.label()}). Up: the rise at "
               f"{longest(rows)} tokens. The lower left is best at both. Bars: 95% intervals, "
               "paired where the seeds agree.")
    return [Plot("short_cost", "Short cost against gap", caption, paint,
                 lambda: handles(drawn, looks, lines=False), height=3.5)]


def _bars(estimate) -> list[list[float]] | None:
    if estimate.low is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
