"""Table cells: text for a terminal, which on the page also says how it was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lcx.eval.statistics import Estimate
from lcx.labels import digest
from lcx.study.arms import Arm

Row = Mapping[str, Any]


class Cell(str):
    """A cell's text. link: an id on the page; title: what it says on hover; key: it sorts by it."""

    link: str
    title: str
    key: float | None

    def __new__(cls, text: str, *, link: str = "", title: str = "", key: float | None = None):
        cell = super().__new__(cls, text)
        cell.link, cell.title, cell.key = link, title, key
        return cell


def anchor(arm: Arm, *parts: Any) -> str:
    """The id of an arm's section, or of one of its measurements there."""
    slug = re.sub(r"[^a-z0-9]+", "-", arm.label().lower()).strip("-")
    check = digest(arm.label(), 12)  # "a(1)" and "a-1" have one slug
    return "-".join(["arm", slug, check, *(str(part) for part in parts if part != "")])


def name(arm: Arm) -> Cell:
    """An arm's name, leading to its method and config."""
    return Cell(arm.label(), link=anchor(arm), title="method, config and all rows of this arm")


def number(estimate: Estimate | None, *, interval: bool = False, sign: str = "",
           status: str = "", link: str = "", title: str = "") -> Cell:
    """2.453, or with its interval 2.453 [2.269, 2.648]; without a value its status."""
    if estimate is None:
        return Cell(status, link=link, title=title)
    text = f"{estimate.value:{sign}.3f}"
    if interval and estimate.low is not None:
        text += f" [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
    return Cell(text, link=link, title=title, key=estimate.value)


def plain(value: Any) -> Cell:
    """12,345 for a count, 0.003 for a rate, yes or no for a truth."""
    key = float(value) if isinstance(value, (int, float)) else None
    if isinstance(value, bool):
        return Cell("yes" if value else "no", key=key)
    if isinstance(value, int) or (isinstance(value, float) and value >= 1e4):
        return Cell(f"{value:,.0f}", key=key)
    if isinstance(value, float):
        return Cell(f"{value:.4g}", key=key)
    return Cell("unknown" if value is None else str(value))
