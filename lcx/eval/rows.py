"""Rows: one measured value with everything that is needed to judge it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lcx.errors import ConfigError, did_you_mean
from lcx.eval.statistics import Estimate

# What a comparison must say to be fair; every row carries all of it.
FAIRNESS = ("parameters", "flops_per_token", "state_size", "train_tokens", "learning_rate",
            "learning_rate_tuned", "code_version", "dirty", "config_hash")
# Who was measured; the caller may leave these out and fill them in later.
IDENTITY = ("run", "position", "mixer", "seed", "checkpoint_step")
FIELDS = ("run", "position", "mixer", "train_length", "length", "metric", "method", "value", "low",
          "high", "seed", "documents", "tokens", *FAIRNESS, "checkpoint_step", "extra")


def check_fairness(fairness: Mapping[str, Any]) -> None:
    """Raise ConfigError unless every fairness field has a value and no field is unknown."""
    missing = [name for name in FAIRNESS if fairness.get(name) is None]
    if missing:
        raise ConfigError(f"a row needs the fairness fields {', '.join(missing)}; give each a "
                          "value ('unknown' where it cannot be known)")
    for name in fairness:
        if name not in FAIRNESS + IDENTITY:
            raise ConfigError(f"unknown fairness field '{name}'"
                              + did_you_mean(name, FAIRNESS + IDENTITY))


def row(fairness: Mapping[str, Any], *, train_length: int, length: int, metric: str, method: str,
        estimate: Estimate | None, documents: int, tokens: int,
        extra: Mapping[str, Any]) -> dict[str, Any]:
    """One row, ready for JSON: an infinite or missing number is None.

    `estimate` None is a cell without a value; `extra["status"]` then says why.
    """
    found = estimate or Estimate(math.nan)
    values = dict(
        train_length=train_length, length=length, metric=metric, method=method,
        value=_finite(found.value), low=_finite(found.low), high=_finite(found.high),
        documents=int(documents), tokens=int(tokens), extra={"status": "ok", **extra})
    values.update({name: fairness.get(name) for name in FAIRNESS + IDENTITY})
    return {name: values[name] for name in FIELDS}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
