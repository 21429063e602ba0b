"""Trackers: where a run's scalars go beside metrics.jsonl; one small file each, found by its name.

A tracker is built with its options, the run's folder, name (the run id), config (nested dicts) and
the step it goes on from; it has `log(step, scalars)` and `close()`. Its file says which PACKAGE it
needs, imported when a run begins, and how to INSTALL it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

from lcx import lookup
from lcx.errors import ConfigError

PACKAGE = "lcx.train.trackers"


class Tracker(Protocol):
    """Takes the scalars of a step."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def check(specs: Any) -> None:
    """Raise ConfigError where the package of a tracker is not installed."""
    for spec in _each(specs):
        lookup.find(PACKAGE, spec["name"])
        file = lookup.module(PACKAGE, spec["name"])
        if importlib.util.find_spec(file.PACKAGE) is None:
            raise ConfigError(f"the tracker '{spec['name']}' needs {file.PACKAGE}: "
                              f"pip install '{file.INSTALL}', or leave it out of runtime.trackers")


def make(specs: Any, **run: Any) -> list[Tracker]:
    """The trackers of runtime.trackers: None, a component or a list of them."""
    return [lookup.build(PACKAGE, spec, **run) for spec in _each(specs)]


def _each(specs: Any) -> list[dict[str, Any]]:
    if specs is None:
        return []
    specs = specs if isinstance(specs, list | tuple) else [specs]
    return [{"name": spec} if isinstance(spec, str) else dict(spec) for spec in specs]
