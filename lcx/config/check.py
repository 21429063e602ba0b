"""Is every component of a config known, and every value of the right type and in its domain?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lcx import lookup
from lcx.config.base import COMPONENTS, INJECTED, LAYER_KEYS, PATTERN
from lcx.config.domains import DOMAINS
from lcx.config.override import spec
from lcx.domains import fit
from lcx.errors import ConfigError, did_you_mean


def validate(config: ConfigDict) -> ConfigDict:
    """Check all keys and components, and normalise options (2 -> 2.0). Raises ConfigError."""
    for path, domain in DOMAINS.items():
        node, key = _node(config, path)
        fit(node[key], domain, path)
    for path, package in COMPONENTS.items():
        node, key = _node(config, path)
        node[key] = component(package, path, node[key])
    node, key = _node(config, PATTERN)
    if node[key] is not None:
        node[key] = [_checked_layer(f"{PATTERN}[{i}]", layer) for i, layer in enumerate(node[key])]
    return config


def _checked_layer(path: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    for key in layer:
        if key not in LAYER_KEYS:
            raise ConfigError(f"unknown key '{key}' in '{path}'" + did_you_mean(key, LAYER_KEYS))
    return {k: component(LAYER_KEYS[k], f"{path}.{k}", v) for k, v in layer.items()}


def component(package: str, path: str, value: Any) -> Any:
    """A component or a list of them, checked, with its options normalised. Raises ConfigError."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [component(package, path, v) for v in value]
    value = spec(path, value)
    options = {k: v for k, v in value.items() if k != "name"}
    try:
        cls = lookup.find(package, value["name"])
        lookup.check_options(cls, value["name"], options, INJECTED.get(package, ()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return {"name": value["name"], **lookup.fitted(cls, options, path)}


def _node(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    *sections, key = path.split(".")
    for section in sections:
        config = config[section]
    return config, key
