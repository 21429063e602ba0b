"""Is every component of a config known, with known options of the right type?"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lcx import lookup
from lcx.config.base import COMPONENTS, INJECTED, LAYER_KEYS, PATTERN
from lcx.config.override import spec
from lcx.errors import ConfigError, did_you_mean


def validate(config: ConfigDict) -> ConfigDict:
    """Check all components and normalise their options (2 -> 2.0). Raises ConfigError."""
    for path, package in COMPONENTS.items():
        node, key = _node(config, path)
        node[key] = _checked(package, path, node[key])
    node, key = _node(config, PATTERN)
    if node[key] is not None:
        node[key] = [_checked_layer(f"{PATTERN}[{i}]", layer) for i, layer in enumerate(node[key])]
    return config


def _checked_layer(path: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    for key in layer:
        if key not in LAYER_KEYS:
            raise ConfigError(f"unknown key '{key}' in '{path}'" + did_you_mean(key, LAYER_KEYS))
    return {k: _checked(LAYER_KEYS[k], f"{path}.{k}", v) for k, v in layer.items()}


def _checked(package: str, path: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_checked(package, path, v) for v in value]
    value = spec(path, value)
    options = {k: v for k, v in value.items() if k != "name"}
    try:
        cls = lookup.find(package, value["name"])
        lookup.check_options(cls, value["name"], options, INJECTED.get(package, ()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    hints = _hints(cls)
    return {"name": value["name"],
            **{k: fit(v, hints.get(k, Any), f"{path}.{k}") for k, v in options.items()}}


def fit(value: Any, hint: Any, path: str) -> Any:
    """`value` as the annotated type of an option (int -> float), or a ConfigError."""
    matched, result = _match(value, hint)
    if not matched:
        wanted = getattr(hint, "__name__", None) or str(hint)
        raise ConfigError(f"'{path}' must be {wanted}, got {value!r} ({type(value).__name__})")
    return result


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            matched, result = _match(value, option)
            if matched:
                return True, result
        return False, value
    if origin is typing.Literal:
        return value in args, value
    kind = origin or hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if kind in (int, float, str, bool):
        return type(value) is kind, value
    if kind is type(None):
        return value is None, value
    if kind in (tuple, list):
        return isinstance(value, (tuple, list)), value
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping), value
    return True, value  # an annotation that says nothing checkable


def _hints(cls: type) -> dict[str, Any]:
    annotated = dataclasses.is_dataclass(cls) or not inspect.isclass(cls)
    try:
        return typing.get_type_hints(cls if annotated else cls.__init__)
    except (NameError, TypeError):  # names that only exist for a type checker
        return {}


def _node(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    *sections, key = path.split(".")
    for section in sections:
        config = config[section]
    return config, key
