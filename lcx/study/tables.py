"""The numbers of a report as tables: bits per byte by length, and what makes arms comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcx.eval.statistics import verdict
from lcx.study.arms import Arm, Row, arm_of, arms, baseline, curves, inside, train_lengths

Table = tuple[list[str], list[list[str]]]  # header, rows


def by_length(rows: Sequence[Row], intervals: bool = False) -> Table:
    """bpb of each arm at each context, its rise and its gap G, and the unigram row beneath.

    The rise is from the last rung inside the train length to the longest. G alone would hide a
    model that breaks at once: its reference, a context of L, already has its block beyond L.
    """
    bpb, gaps = curves(rows, "bpb"), curves(rows, "bpb_gap")
    lengths = sorted({p.length for points in bpb.values() for p in points})
    trained = train_lengths(rows)
    header = ["arm", *(f"{c}*" if c in trained else str(c) for c in lengths),
              "rise", f"G({lengths[-1]})" if lengths else "G", "verdict"]
    body = []
    for arm in _ranked(bpb, gaps):
        cells = {p.length: p for p in bpb[arm]}
        last = [p for p in gaps.get(arm, []) if lengths and p.length == lengths[-1]]
        gap = last[0] if last else None
        body.append([arm.label(), *(_cell(cells.get(c), intervals) for c in lengths),
                     _rise(bpb[arm], rows), _cell(gap, intervals, sign="+"),
                     verdict(gap.estimate) if gap and gap.estimate else ""])
    if (row := baseline(rows)) is not None:
        body.append(["unigram (no context)", *([f"{row['value']:.3f}"] * len(lengths)), "", "", ""])
    return header, body


def fairness(rows: Sequence[Row]) -> Table:
    """What each arm was given: a comparison is fair where these agree, or says why not."""
    header = ["arm", "parameters", "FLOPs/token", "state size", "train tokens", "learning rate",
              "tuned", "seeds", "documents", "target tokens", "code"]
    body = []
    for arm in arms(rows):
        own = [row for row in rows if arm_of(row) == arm and row["metric"] == "bpb"]
        kept = lambda name, own=own: _joined(row[name] for row in own)
        measured = lambda name, own=own: _joined(
            row[name] for row in own if row["value"] is not None)
        code = _joined(f"{row['code_version']}{' (dirty)' if row['dirty'] else ''}" for row in own)
        body.append([arm.label(), kept("parameters"), kept("flops_per_token"), kept("state_size"),
                     kept("train_tokens"), kept("learning_rate"), kept("learning_rate_tuned"),
                     kept("seed"), measured("documents"), measured("tokens"), code])
    return header, body


def lengths_reached(rows: Sequence[Row]) -> Table:
    """Stable and useful length of each run, as measured on its own documents."""
    header, body = ["arm", "seed", "stable length", "useful length"], []
    found: dict[tuple[Arm, Any], dict[str, str]] = {}
    for row in rows:
        if row["metric"] in ("stable_length", "useful_length"):
            at_least = ">= " if (row["extra"] or {}).get("at_least") else ""
            text = "none" if row["value"] is None else f"{at_least}{row['value']:.0f}"
            found.setdefault((arm_of(row), row["seed"]), {})[row["metric"]] = text
    for (arm, seed), cells in sorted(found.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        body.append([arm.label(), str(seed), cells.get("stable_length", ""),
                     cells.get("useful_length", "")])
    return header, body


def text(table: Table) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    header, body = table
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
             for line in [header, *body]]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _ranked(bpb, gaps) -> list[Arm]:
    """Arms in the order of their bpb at the longest context; those without a value last."""
    def rank(arm: Arm):
        last = bpb[arm][-1].estimate
        return (last is None, last.value if last else 0.0, arm)
    return sorted(bpb, key=rank)


def rise(points, rows: Sequence[Row]) -> float | None:
    """bpb at the longest context minus bpb at the last rung inside the train length."""
    first, last = inside(points, rows), points[-1]
    if first is None or last.estimate is None:
        return None
    return last.estimate.value - first.estimate.value


def _rise(points, rows) -> str:
    found = rise(points, rows)
    return "" if found is None else f"{found:+.3f}"


def _cell(point, intervals: bool, sign: str = "") -> str:
    if point is None:
        return ""
    if point.estimate is None:
        return point.status
    found = point.estimate
    value = f"{found.value:{sign}.3f}"
    if intervals and found.low is not None:
        value += f" [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
    return value


def _joined(values) -> str:
    """The distinct values of a field over an arm's rows."""
    distinct = list(dict.fromkeys(values))
    return ", ".join(number(value) for value in distinct[:4]) + (" ..." if distinct[4:] else "")


def number(value: Any) -> str:
    """12,345 for a count, 0.003 for a rate, yes or no for a truth."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value >= 1e4):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "unknown" if value is None else str(value)
