"""What a reader must know before comparing rows; and which rows may not be compared at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lcx.errors import ConfigError
from lcx.eval.targets import DIGEST
from lcx.study.arms import Arm, Row, arm_of, curves, version_of
from lcx.study.distinct import final
from lcx.study.gaps import APART, longest, rises
from lcx.study.names import member_name

ALIKE = 1.01  # training tokens this far apart count as equal


def versions(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The code versions behind rows, an edited tree apart from its commit, and their runs."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(version_of(row), set()).add(row["run"])
    return {version: sorted(found[version]) for version in sorted(found)}


def refuse_mixed(rows: Sequence[Row], folder: Any) -> None:
    """Raise ConfigError, naming versions and runs, where rows come from several versions."""
    if len(found := versions(rows)) > 1:
        told = "; ".join(f"{version}: {len(runs)} runs ({', '.join(runs[:3])}"
                         f"{', ...' if runs[3:] else ''})" for version, runs in found.items())
        raise ConfigError(
            f"the rows under {folder} come from {len(found)} versions of the code, so that a "
            f"difference between arms may be one between versions ({told}). Measure again with "
            "one version (lcx eval RUN), or say that you accept it: "
            f"lcx report {folder} --mix-versions")


def warn(rows: Sequence[Row], members: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What a reader must know before comparing these rows."""
    found, rows = [], final(rows)
    if len(mixed := versions(rows)) > 1:
        found.append("These rows come from different versions of the code, so that a difference "
                     f"between arms may be one between versions: {', '.join(mixed)}.")
    elif rows and rows[0]["dirty"]:
        found.append("The code had changes that are in no commit: these numbers cannot be "
                     "reproduced from the version they name.")
    lengths = sorted({row["train_length"] for row in rows})
    if len(lengths) > 1:
        found.append(f"These arms were trained at different lengths: {lengths}.")
    found += _unlike_training(rows)
    untrained = {arm_of(row).label() for row in rows if (row["extra"] or {}).get("initialised")}
    if untrained:
        found.append("A test-time scheme brought parameters that no training has touched: "
                     f"{'; '.join(sorted(untrained))}.")
    targets = {(row["extra"] or {}).get("targets") for row in rows if row["metric"] == "bpb"}
    named = {one for one in targets if one and not one.startswith(DIGEST)}  # of earlier versions
    if named and targets - named:
        found.append("Older rows know their target tokens by the names of documents and newer ones "
                     "by their content, so whether they are the same cannot be told: measure the "
                     "older runs again (lcx eval RUN) to know.")
    if max(len(named), len(targets - named)) > 1:
        found.append("These arms were scored on different target tokens: compare their gaps, not "
                     "their levels.")
    found += _broken_at_once(rows)
    lost = [f"{arm_of(row).label()} at {row['length']}: "
            f"{(row['extra'] or {}).get('status')}" for row in rows
            if row["metric"] in ("bpb", "accuracy") and row["value"] is None]
    if lost:
        found.append(f"Without a value: {'; '.join(dict.fromkeys(lost))}.")
    failed = [f"{member_name(m)} ({m['state']})" for m in members
              if m.get("state") not in ("finished", None)]
    if failed:
        found.append(f"{len(failed)} of {len(members)} runs are not in this report or not whole: "
                     f"{'; '.join(failed)}.")
    if rows and not all(row["learning_rate_tuned"] for row in rows):
        found.append("The learning rate was not tuned for each arm: a worse arm may only be one "
                     "with a worse rate.")
    return found


def _unlike_training(rows: Sequence[Row]) -> list[str]:
    """Arms that saw more or fewer tokens; seeds differ a little by where documents end."""
    seen: dict[Arm, list[float]] = {}
    for row in rows:
        if isinstance(row["train_tokens"], (int, float)):
            seen.setdefault(arm_of(row), []).append(row["train_tokens"])
    every = [count for counts in seen.values() for count in counts]
    if not every or max(every) <= ALIKE * min(every):
        return []
    told = [f"{arm.label()}: {min(seen[arm]):,.0f}"
            + (f" to {max(seen[arm]):,.0f}" if max(seen[arm]) > ALIKE * min(seen[arm]) else "")
            for arm in sorted(seen)]
    return ["These runs saw different numbers of training tokens, and more training can help or "
            f"hurt beyond the train length: {'; '.join(told)}."]


def _broken_at_once(rows: Sequence[Row]) -> list[str]:
    """Arms whose reference of G, a context of L with its block beyond L, is itself bad already."""
    context = longest(rows)
    gaps = {arm: point.estimate.value for arm, points in curves(rows, "bpb_gap").items()
            for point in points if point.length == context and point.estimate}
    found = [gap.arm.label() for gap in rises(rows) if gap.estimate and gap.arm in gaps
             and gap.estimate.value - gaps[gap.arm] > APART]
    if not found:
        return []
    return [f"Worse as soon as the scored block leaves the train length: {', '.join(found)}. "
            "There G and the stable length are against a score that is bad already and look too "
            "good; read the rise."]
