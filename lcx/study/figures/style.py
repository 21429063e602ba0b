"""Colours, markers and legends: an arm looks the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcx.study.arms import Arm

# Okabe and Ito's palette without its yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*<>"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
GREY, LINE = "#666666", "#444444"
RC = {"font.size": 9, "axes.spines.top": False, "legend.frameon": False,
      "axes.spines.right": False, "svg.fonttype": "path", "figure.dpi": 150, "pdf.fonttype": 42,
      "legend.fontsize": 8.5}


def styles(all_arms: Sequence[Arm]) -> Mapping[Arm, dict[str, Any]]:
    """One colour and marker per scheme, one dash per mixer."""
    schemes = list(dict.fromkeys((arm.position, arm.note) for arm in sorted(
        all_arms, key=lambda a: (a.position, a.note))))
    mixers = list(dict.fromkeys(arm.mixer for arm in all_arms))
    found = {}
    for arm in all_arms:
        scheme, mixer = schemes.index((arm.position, arm.note)), mixers.index(arm.mixer)
        colour = COLOURS[scheme % len(COLOURS)]
        found[arm] = dict(color=colour, linestyle=DASHES[mixer % len(DASHES)],
                          marker=MARKERS[scheme % len(MARKERS)],
                          markerfacecolor=colour if mixer % 2 == 0 else "white")
    return found


def handles(drawn: Iterable[Arm], looks: Mapping[Arm, Mapping[str, Any]],
            lines: bool = True) -> list[tuple[str, Any]]:
    """A legend's entries, a name and a handle: one per scheme and one per mixer's dash.

    Without `lines` (points only), or with one mixer, it is one entry per arm.
    """
    from matplotlib.lines import Line2D

    drawn, found = list(drawn), {}
    several = len({arm.mixer for arm in drawn}) > 1
    for arm in drawn:
        look = dict(looks[arm], markersize=4.5)
        label = arm.label(mixers=several and not lines)
        if several and lines:
            label = arm.label(mixers=False)
            look |= dict(linestyle="none", markerfacecolor=look["color"], markersize=6)
        elif not lines:
            look |= dict(linestyle="none", markersize=6)
        found.setdefault(label, Line2D([], [], **look))
    for arm in drawn:
        if several and lines and f"on {arm.mixer}" not in found:
            found[f"on {arm.mixer}"] = Line2D([], [], color=LINE,
                                              linestyle=looks[arm]["linestyle"])
    return list(found.items())
