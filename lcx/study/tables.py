"""The numbers of a report as tables: by length, ranked, and what makes arms comparable."""

from __future__ import annotations

from collections.abc import Sequence

from lcx.eval.statistics import Estimate, verdict
from lcx.labels import columns, pad
from lcx.study import answers
from lcx.study.arms import (
    SAME,
    Arm,
    Point,
    Row,
    arm_of,
    arms,
    baseline,
    curves,
    train_lengths,
    version_of,
)
from lcx.study.cells import Cell, anchor, name, number, plain
from lcx.study.gaps import adjusted, inside_context, longest, rises, short_costs

Table = tuple[list[str], list[list[str]]]  # header, rows
LEVELS = ("bpb", "accuracy")  # the metric that stands for a run's rows, of texts and of tasks


def overview(rows: Sequence[Row]) -> str:
    """For a terminal: bits per byte by context, and accuracy by length where there was a task."""
    found = []
    for metric, words in answers.WORDS.items():
        if (table := answers.by_length(rows, metric))[1]:
            found.append(f"{words}, by length\n{text(table)}")
    if not found or any(row["metric"] == "bpb" for row in rows):
        found.insert(0, text(by_length(rows)))
    return "\n\n".join(found)


def by_length(rows: Sequence[Row], intervals: bool = False, *, metric: str = "bpb",
              gaps: bool = True) -> Table:
    """A metric of each arm at each context; for bpb the unigram row beneath.

    With `gaps` also its rise and its gap G. The rise is from the last rung inside the train length
    to the longest. G alone would hide a model that breaks at once: its reference, a context of L,
    already has its block beyond L.
    """
    found, differences = curves(rows, metric), curves(rows, "bpb_gap")
    lengths = sorted({p.length for points in found.values() for p in points})
    trained = train_lengths(rows)
    header = ["arm", *(f"{c}*" if c in trained else str(c) for c in lengths)]
    header += ["rise", f"G({lengths[-1]})" if lengths else "G", "verdict"] if gaps else []
    risen = {gap.arm: gap.estimate for gap in rises(rows)} if gaps else {}
    body = []
    for arm in _ranked(found):
        at = {p.length: p for p in found[arm]}
        line = [name(arm), *(_point(arm, at.get(c), metric, intervals) for c in lengths)]
        if gaps:
            last = [p for p in differences.get(arm, []) if lengths and p.length == lengths[-1]]
            point = last[0] if last else None
            line += [number(risen.get(arm), interval=intervals, sign="+"),
                     _point(arm, point, "bpb_gap", intervals, sign="+"),
                     verdict(point.estimate) if point and point.estimate else ""]
        body.append(line)
    if metric == "bpb" and (row := baseline(rows)) is not None:
        cell = number(Estimate(row["value"], row["low"], row["high"]), interval=intervals,
                      title=_method(row, 1))
        body.append(["unigram (no context)", *([cell] * len(lengths)), *[""] * (3 * gaps)])
    return header, body


def ranked(rows: Sequence[Row]) -> Table:
    """Arms by their rise at the longest context, with what they cost within the train length."""
    context, gaps = longest(rows), rises(rows)
    best, costs = short_costs(rows)
    told = adjusted(gaps)
    beyond = {arm: {p.length: p for p in points}.get(context)
              for arm, points in curves(rows, "bpb_gap").items()}
    bpb = {arm: {p.length: p for p in points} for arm, points in curves(rows, "bpb").items()}
    header = ["#", "arm", f"rise to {context}", "verdict", f"G({context})", "bpb within L",
              "short cost"]
    body = []
    for place, gap in enumerate(gaps, start=1):
        arm, cost = gap.arm, costs.get(gap.arm)
        inside = inside_context([row for row in rows if arm_of(row) == arm])
        how = (f"bpb with {context} tokens of context minus bpb with {gap.against}; "
               + _interval_of(len(gap.seeds)))
        against = "" if cost is None else (
            f"bpb minus that of {best.label()}, both with context {cost.context}, "
            + ("paired by token" if cost.estimate.low is not None else "not paired: other seeds"))
        body.append([
            Cell(str(place), key=place), name(arm),
            number(gap.estimate, interval=True, sign="+", status=gap.status, title=how,
                   link=anchor(arm, "bpb", context)),
            told.get(arm, ""), _point(arm, beyond.get(arm), "bpb_gap", True, sign="+"),
            _point(arm, bpb[arm].get(inside), "bpb", False),
            Cell("best") if arm == best else number(
                cost and cost.estimate, interval=True, sign="+", title=against,
                link=anchor(arm, "bpb", inside))])
    return header, body


def fairness(rows: Sequence[Row]) -> Table:
    """What each arm was given: a comparison is fair where these agree, or says why not."""
    header = ["arm", "parameters", "FLOPs/token", "state size", "train tokens", "learning rate",
              "tuned", "seeds", "documents", "target tokens", "code"]
    body = []
    for arm in arms(rows):
        own = [row for row in rows if arm_of(row) == arm and row["metric"] in LEVELS]
        kept = lambda key, own=own: _joined(row[key] for row in own)
        measured = lambda key, own=own: _joined(
            row[key] for row in own if row["value"] is not None)
        code = _joined(version_of(row) for row in own)
        body.append([name(arm), kept("parameters"), kept("flops_per_token"), kept("state_size"),
                     kept("train_tokens"), kept("learning_rate"), kept("learning_rate_tuned"),
                     kept("seed"), measured("documents"), measured("tokens"), code])
    return header, body


def lengths_reached(rows: Sequence[Row]) -> Table:
    """Stable and useful length of each arm, one value per seed where seeds differ."""
    header, body = ["arm", "seeds", "stable length", "useful length"], []
    for arm in arms(rows):
        own = [row for row in rows if arm_of(row) == arm]
        cells = [_reached([row for row in own if row["metric"] == metric])
                 for metric in ("stable_length", "useful_length")]
        if any(cells):
            body.append([name(arm), _joined(row["seed"] for row in own), *cells])
    return header, body


def _reached(rows: Sequence[Row]) -> str:
    told = []
    for row in sorted(rows, key=lambda row: str(row["seed"])):
        at_least = ">= " if (row["extra"] or {}).get("at_least") else ""
        told.append("none" if row["value"] is None else f"{at_least}{row['value']:.0f}")
    told = told[:1] if len(set(told)) == 1 else told
    shortest = min((row["value"] or 0.0 for row in rows), default=None)
    return Cell(", ".join(told), key=shortest, title=_method(rows[0], 1) if rows else "")


def text(table: Table) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    header, body = table
    widths = [max(columns(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = ["  ".join(pad(cell, w, right=i > 0)
                       for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
             for line in [header, *body]]
    return "\n".join([lines[0], "-" * max(map(columns, lines)), *lines[1:]])


def _ranked(found: dict[Arm, list[Point]]) -> list[Arm]:
    """Arms in the order of their value at the longest context; those without one last."""
    def rank(arm: Arm):
        last = found[arm][-1].estimate
        return (last is None, last.value if last else 0.0, arm)
    return sorted(found, key=rank)


def _point(arm: Arm, point: Point | None, metric: str, interval: bool, sign: str = "") -> str:
    if point is None:
        return ""
    how = (f"{arm.label()}: {metric}, {SAME}, {point.length} tokens of context; "
           + _interval_of(len(point.seeds)))
    return number(point.estimate, interval=interval, sign=sign, status=point.status, title=how,
                  link=anchor(arm, metric, point.length))


def _interval_of(seeds: int) -> str:
    return "95% bootstrap-t over documents" if seeds <= 1 else f"95% Student's t over {seeds} seeds"


def _method(row: Row, seeds: int) -> str:
    return (f"{row['metric']}, {row['method']}, {row['documents']} documents, {row['tokens']} "
            f"tokens; {_interval_of(seeds)}")


def _joined(values) -> str:
    """The distinct values of a field over an arm's rows."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return plain(distinct[0])
    return ", ".join(plain(value) for value in distinct[:4]) + (" ..." if distinct[4:] else "")
