"""The run id: a hash of what an experiment sets apart from the defaults, in one spelling."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lcx import lookup
from lcx.config.base import COMPONENTS, LAYER_KEYS, PATTERN, base_config
from lcx.config.identity import canonical_json, resolve
from lcx.config.layers import apply
from lcx.config.override import leaf_paths
from lcx.errors import ConfigError

# Hashed with every experiment. 1 hashed every key, defaults included, and paths of files. Raise it
# where an id would otherwise come to mean another experiment; folders are found by their
# config.json whatever number they are named under (`lcx.config.stored`).
SCHEMA = 2

# What a key meant when it first came, where its default is another one now: such a key is left out
# of the id at this value, so that the ids of stored runs stay and the new default gets new ones.
# "experiment.train.clip": 1.0, or for an option of a component "lcx.positions.rope.base": 10000.0.
# tests/defaults.json holds the defaults of today; a test fails where one moves without a line here.
BORN: dict[str, Any] = {}

OVERRIDES = "experiment.eval.overrides"
MODEL, EVAL = "experiment.model.", "experiment.eval."
# What a test-time override cannot set for itself.
_NOT_TESTED = (OVERRIDES, "experiment.eval.every")


def run_id(config: ConfigDict) -> str:
    """Ten hex digits that name an experiment; runtime (paths, mesh, logging) does not count."""
    text = canonical_json({"schema": SCHEMA, "experiment": essence(config)})
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def essence(config: ConfigDict) -> dict[str, Any]:
    """The keys of `experiment` that differ from their defaults, by dotted path.

    1, 1.0 and 1e0 are one number; of a component its name and the options that differ from its own
    defaults count; one with a `content` (`lcx.config.content`) is that content, wherever it lies.
    """
    found = _spelled(config)
    found[OVERRIDES] = _tests(config, found)
    return {path: value for path, value in found.items()
            if not same(value, BORN.get(path, _defaults().get(path)))}


def same(one: Any, other: Any) -> bool:
    """Whether two values are spelled alike (True is no 1)."""
    return canonical_json(one) == canonical_json(other)


def one_spelling(value: Any) -> Any:
    """Nested values with every whole number as an int. Raises ConfigError on NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: one_spelling(item) for key, item in value.items()}
    if isinstance(value, list):
        return [one_spelling(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"a config holds finite numbers, not {value}")
        return int(value) if value.is_integer() else value
    return value


def component(package: str, value: Any) -> Any:
    """A component (or a stack, or None) without what it would be anyway."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [component(package, part) for part in value]
    spec = {"name": value} if isinstance(value, str) else one_spelling(resolve(value))
    if spec.get("content"):
        return {"name": spec["name"], "content": spec["content"]}
    try:
        cls = lookup.find(package, spec["name"])
    except ConfigError:  # `validate` says so
        return spec
    known, places = lookup.fields(cls), getattr(cls, "PLACES", ())

    def counts(key: str) -> bool:
        born = BORN.get(f"{package}.{spec['name']}.{key}", known.get(key, dataclasses.MISSING))
        return key not in places and (born is dataclasses.MISSING
                                      or not same(spec[key], one_spelling(resolve(born))))
    return {"name": spec["name"],
            **{key: spec[key] for key in spec if key != "name" and counts(key)}}


def _spelled(config: ConfigDict) -> dict[str, Any]:
    """Every key of `experiment` by dotted path, in one spelling; test-time overrides aside."""
    flat = {f"experiment.{path}": _at(config.experiment, path)
            for path in leaf_paths(config.experiment)}
    found = {path: component(COMPONENTS[path], value) if path in COMPONENTS
             else one_spelling(resolve(value))
             for path, value in flat.items() if path not in (OVERRIDES, PATTERN)}
    layers = [{key: component(package, layer[key]) if key in layer else found[MODEL + key]
               for key, package in LAYER_KEYS.items()} for layer in flat[PATTERN] or [{}]]
    if len(layers) == 1:  # all layers alike: no pattern is needed to say so
        return {**found, **{MODEL + key: value for key, value in layers[0].items()}, PATTERN: None}
    default = {key: BORN.get(MODEL + key, _defaults()[MODEL + key]) for key in LAYER_KEYS}
    told = [{key: value for key, value in layer.items() if not same(value, default[key])}
            for layer in layers]
    # What the model says beside a pattern is in its layers by now.
    return {**found, **{MODEL + key: value for key, value in default.items()}, PATTERN: told}


def _tests(config: ConfigDict, own: Mapping[str, Any]) -> Any:
    """What each test-time override changes: two spellings of one change are one."""
    overrides = config.experiment.eval.overrides
    if overrides is None:
        return None
    found = []
    for override in overrides:
        try:
            other = _spelled(apply(config, override))
        except (ConfigError, AttributeError, TypeError):  # no override: `variants` says so
            found.append(one_spelling(resolve(override)))
            continue
        found.append({path: value for path, value in other.items()
                      if path.startswith((MODEL, EVAL)) and path not in _NOT_TESTED
                      and not same(value, own[path])})
    return found


@functools.cache
def _defaults() -> dict[str, Any]:
    return {**_spelled(base_config()), OVERRIDES: None}


def _at(section: Any, path: str) -> Any:
    for key in path.split("."):
        section = section[key]
    return section
