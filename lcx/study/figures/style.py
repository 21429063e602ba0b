"""Colours, markers and legends: an arm looks the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcx.study.arms import Arm

# Okabe and Ito's palette without its yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*<>"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
FACES = (1.0, 0.0, 0.5, 0.25, 0.75)  # how full a mixer's markers are, where no dash is drawn
GREY, LINE = "#666666", "#444444"
RC = {"font.size": 9, "axes.spines.top": False, "legend.frameon": False,
      "axes.spines.right": False, "svg.fonttype": "path", "figure.dpi": 150, "pdf.fonttype": 42,
      "legend.fontsize": 8.5}


def styles(all_arms: Sequence[Arm]) -> Mapping[Arm, dict[str, Any]]:
    """One colour and marker per scheme, one dash and one filling of the marker per mixer."""
    schemes = list(dict.fromkeys((arm.position, arm.note) for arm in sorted(
        all_arms, key=lambda a: (a.position, a.note))))
    mixers = list(dict.fromkeys(arm.mixer for arm in all_arms))
    found = {}
    for arm in all_arms:
        scheme, mixer = schemes.index((arm.position, arm.note)), mixers.index(arm.mixer)
        colour = COLOURS[scheme % len(COLOURS)]
        found[arm] = dict(color=colour, linestyle=DASHES[mixer % len(DASHES)],
                          marker=MARKERS[scheme % len(MARKERS)],
                          markerfacecolor=_faded(colour, FACES[mixer % len(FACES)]))
    return found


def _faded(colour: str, share: float) -> str:
    """A colour on white: all of it at a share of 1, none at 0."""
    parts = [int(colour[n:n + 2], 16) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


def handles(drawn: Iterable[Arm], looks: Mapping[Arm, Mapping[str, Any]],
            lines: bool = True) -> list[tuple[str, Any]]:
    """A legend's entries, a name and a handle: one per arm.

    Of lines, one per scheme and one per mixer's dash where these are fewer: a grid of both.
    """
    from matplotlib.lines import Line2D

    drawn = list(drawn)
    mixers = {arm.mixer: looks[arm]["linestyle"] for arm in drawn}
    schemes = {arm.label(mixers=False): looks[arm] for arm in drawn}
    if not lines or len(mixers) == 1 or len(schemes) + len(mixers) >= len(drawn):
        shape = dict(markersize=4.5) if lines else dict(markersize=6, linestyle="none")
        return [(arm.label(mixers=len(mixers) > 1), Line2D([], [], **{**looks[arm], **shape}))
                for arm in drawn]
    shape = dict(markersize=6, linestyle="none")
    return [*((name, Line2D([], [], **{**look, **shape, "markerfacecolor": look["color"]}))
              for name, look in schemes.items()),
            *((f"on {mixer}", Line2D([], [], color=LINE, linestyle=dash))
              for mixer, dash in mixers.items())]
