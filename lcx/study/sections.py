"""One folded section per arm: how it was measured, all its rows, and the config of each run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lcx.eval.exact import METHOD as EXACT
from lcx.eval.statistics import Estimate
from lcx.study import markup
from lcx.study.arms import SAME, Arm, Row, arm_of, arms, version_of
from lcx.study.cells import Cell, anchor, number

# Of the evaluation, the same for all rows of a run: what a number means depends on them.
METHOD = ("task", "block", "blocks", "targets", "split", "interval", "level", "resamples",
          "boundaries", "ids", "bos", "evaluation_seed", "chunk", "data", "dtype")


def of_arms(rows: Sequence[Row], configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The section of each arm. configs: the resolved config of each run, by run id."""
    flat = {run: dict(_flat(config.get("experiment", config))) for run, config in configs.items()}
    varying = _varying(flat)
    return [markup.details(arm.label(), _arm(arm, [r for r in rows if arm_of(r) == arm], configs,
                                             flat, varying), anchor(arm))
            for arm in arms(rows)]


def _arm(arm: Arm, rows: Sequence[Row], configs, flat, varying) -> str:
    runs = list(dict.fromkeys(row["run"] for row in rows))
    own = {key: value for run in runs for key, value in flat.get(run, {}).items() if key in varying}
    pairs = [(key, _told(rows, key)) for key in ("position", "mixer")]
    labels = dict.fromkeys((row["extra"] or {}).get("label") for row in rows)
    pairs += [("label", "; ".join(str(label) for label in labels if label))] if any(labels) else []
    pairs += [("runs (seeds)", ", ".join(f"{run} ({_seeds(rows, run)})" for run in runs)),
             ("checkpoint", _told(rows, "checkpoint_step", "step ")),
             ("code", ", ".join(dict.fromkeys(version_of(row) for row in rows)))]
    hashes = {row["config_hash"] for row in rows} - set(runs)
    if hashes:
        pairs.append(("tested under", "another config than trained with: "
                      + ", ".join(sorted(hashes))))
    for key in ("override", "dropped", "initialised"):
        told = dict.fromkeys(json.dumps(extra[key]) for row in rows
                             if (extra := row["extra"] or {}).get(key))
        pairs += [(key, "; ".join(told))] if told else []
    if own:
        pairs.append(("set apart by", "; ".join(f"{key} = {json.dumps(value)}"
                                                for key, value in own.items())))
    pairs += _method(rows)
    parts = [markup.facts(pairs), *_measurements(arm, rows)]
    for run in runs:
        if run in configs:
            text = f"<pre>{markup.escape(json.dumps(configs[run], indent=1))}</pre>"
            parts.append(markup.details(f"Config of run {run} (seed {_seeds(rows, run)})", text))
    return "\n".join(parts)


def _measurements(arm: Arm, rows: Sequence[Row]) -> list[str]:
    """A table of all rows; the first row of each metric and context is what numbers link to."""
    header = ["metric", "method", "context", "value", "seed", "documents", "tokens", "config"]
    body, ids, seen = [], [], Counter()
    order = lambda row: (row["method"] != SAME, row["method"], row["metric"], row["length"],
                         str(row["seed"]))
    for row in sorted(rows, key=order):
        extra = row["extra"] or {}
        found = None if row["value"] is None else Estimate(row["value"], row["low"], row["high"])
        status = extra.get("status", "ok")
        why = extra.get("reason", "") or ("none" if status == "ok" else status)
        body.append([row["metric"], row["method"], Cell(str(row["length"]), key=row["length"]),
                     number(found, interval=True, status=why), str(row["seed"]),
                     f"{row['documents']}", f"{row['tokens']}", row["config_hash"]])
        what = row["metric"] if row["method"] in (SAME, EXACT) else row["method"]
        own = anchor(arm, what, row["length"])
        seen[own] += 1
        ids.append(own if seen[own] == 1 else f"{own}-row-{seen[own]}")
    return [markup.table((header, body), names=2, ids=ids)]


def _method(rows: Sequence[Row]) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        level = (row["metric"], row["method"]) in (("bpb", SAME), ("accuracy", EXACT))
        if level and row["value"] is not None:
            for key in METHOD:
                value = (row["extra"] or {}).get(key)
                text = value if isinstance(value, str) else json.dumps(value)
                if value is not None and text not in found.setdefault(key, []):
                    found[key].append(text)
    return [(key.replace("_", " "), "; ".join(values)) for key, values in found.items()]


def _seeds(rows: Sequence[Row], run: str) -> str:
    return ", ".join(dict.fromkeys(str(row["seed"]) for row in rows if row["run"] == run))


def _told(rows: Sequence[Row], key: str, before: str = "") -> str:
    return ", ".join(dict.fromkeys(f"{before}{row[key]}" for row in rows))


def _flat(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested dicts by dotted path."""
    if not isinstance(config, Mapping):
        return [(path, config)]
    return [leaf for key in config
            for leaf in _flat(config[key], f"{path}.{key}" if path else str(key))]


def _varying(flat: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The keys in which configs differ; the seed aside."""
    keys = {key for config in flat.values() for key in config} - {"seed"}
    spelt = lambda key: {json.dumps(config.get(key, "absent")) for config in flat.values()}
    return {key for key in keys if len(spelt(key)) > 1}
