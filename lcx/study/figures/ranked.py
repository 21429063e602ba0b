"""The forest plot: what the longest context costs each arm, sorted, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from lcx.eval.lengths import STABLE_WITHIN
from lcx.study.arms import Row, arms, curves
from lcx.study.figures.canvas import Plot
from lcx.study.figures.style import GREY, LINE, styles
from lcx.study.figures.words import words
from lcx.study.gaps import APART, Gap, longest, rises


def plots(rows: Sequence[Row]) -> list[Plot]:
    """One line per arm, those that hold up best on top."""
    gaps = rises(rows)
    if not any(gap.estimate for gap in gaps):
        return []
    context = longest(rows)
    beside = {arm: point.estimate.value for arm, points in curves(rows, "bpb_gap").items()
              for point in points if point.length == context and point.estimate}
    looks, several = styles(arms(rows)), len({gap.arm.mixer for gap in gaps}) > 1
    labels = [words(gap.arm.label(mixers=several), 26) for gap in gaps]
    caption = (f"Filled: the rise, bits per byte with {context} tokens of context minus those with "
               "the longest context whose scored block is still inside the train length; bars: its "
               f"95% interval, {_kind(gaps)}. Grey band: +-{STABLE_WITHIN}. Right of 0: longer "
               "context makes the model worse.")
    apart = {gap.arm: beside[gap.arm] for gap in gaps if gap.estimate and gap.arm in beside
             and abs(beside[gap.arm] - gap.estimate.value) > APART}
    if apart:
        caption += (f" Hollow: G({context}), against a context of the train length, where it is "
                    "another number: such a model breaks right at the train length.")
    heights = [label.count("\n") + 1.6 for label in labels]  # in lines of text
    places = [sum(heights[:n]) + height / 2 for n, height in enumerate(heights)]

    def paint(axes) -> None:
        for y, gap in zip(places, gaps):
            colour = looks[gap.arm]["color"]
            if gap.estimate is None:
                told = gap.status
            else:
                found = gap.estimate
                told = f"{found.value:+.3f}"
                if gap.arm in apart:
                    axes.plot(apart[gap.arm], y, "D", markersize=6, markerfacecolor="none",
                              color=GREY, markeredgewidth=0.9)
                if found.low is not None:
                    axes.plot([found.low, found.high], [y, y], color=colour, linewidth=2.2,
                              solid_capstyle="butt")
                axes.plot(found.value, y, color=colour, marker=looks[gap.arm]["marker"],
                          markersize=5, markerfacecolor=looks[gap.arm]["markerfacecolor"])
            axes.annotate(words(told), (1, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                          textcoords="offset points", va="center", fontsize=8.5, color="#1a1a1a")
        axes.axvspan(-STABLE_WITHIN, STABLE_WITHIN, color="#bbbbbb", alpha=0.35, linewidth=0)
        axes.axvline(0, color=LINE, linewidth=0.8, zorder=0)
        axes.set_yticks(places, labels)
        axes.set_ylim(sum(heights), 0)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("rise in bits per byte (lower is better)")

    return [Plot("ranked", f"Ranked: what {context} tokens of context cost", caption, paint,
                 height=1.0 + 0.15 * sum(heights))]


def _kind(gaps: Sequence[Gap]) -> str:
    several = any(len(gap.seeds) > 1 for gap in gaps)
    return "Student's t over seeds" if several else "paired over documents"
