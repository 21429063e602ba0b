"""Setting one key of a config, from Python or from `--config.a.b=value`: whole, right type.

This is what a key itself holds; `lcx.config.layers` has what an override of it means.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lcx.config.base import COMPONENTS, OPTIONAL, PATTERN, STACKS, base_config, is_component
from lcx.domains import fit
from lcx.errors import ConfigError, did_you_mean

_OPTIONAL = {"none", "null"}
_BOOLS = {"true": True, "false": False}


def assign_all(config: ConfigDict, values: Mapping[str, Any], prefix: str = "") -> None:
    """Lay nested `values` over `config`: sections are entered, components replaced whole."""
    for key in values:
        value, path = values[key], f"{prefix}{key}"
        if isinstance(value, Mapping) and not is_component(path) and _is_section(path):
            assign_all(config, value, f"{path}.")
        else:
            assign(config, path, value)


def assign(config: ConfigDict, path: str, value: Any) -> None:
    """Set `path` ("experiment.train.steps"); it may go on into a component's options.

    Raises ConfigError on an unknown key, with a suggestion, and on a wrong type.
    """
    slot, option = _split_component(path)
    if option:
        _assign_option(config, slot, option, value)
        return
    node, key = _parent(config, path)
    if isinstance(node[key], ConfigDict):
        raise ConfigError(f"'{path}' is a section, not a value; set one of its keys: "
                          + ", ".join(f"{path}.{k}" for k in node[key]))
    if is_component(path):
        node[key] = component_value(path, value)
    else:
        default = _parent(_defaults(), path)[0][key]
        node[key] = coerce(value, node.get_type(key), path, optional=default is None)


def parse_override(text: str) -> tuple[str, Any]:
    """`"experiment.train.steps=500"` -> (path, value), the value read as the key's type.

    Components take a bare name (`rope`), JSON or a Python literal (a dict, or a list: a stack).
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"an override needs a value: --config.{path}=VALUE")
    slot, option = _split_component(path)
    layer = path.startswith(f"{PATTERN}.")  # pattern.3.position
    if is_component(path) or option or layer:
        none = value.lower() in _OPTIONAL and (path in OPTIONAL or path == PATTERN or option
                                               or layer)
        return path, None if none else read_literal(value)
    node, key = _parent(_defaults(), path)
    kind = node.get_type(key)
    if kind is str or isinstance(node[key], ConfigDict):
        return path, value
    if value.lower() in _OPTIONAL:
        return path, None
    if kind is bool and value.lower() in _BOOLS:
        return path, _BOOLS[value.lower()]
    parsed = read_literal(value)
    if kind is int and isinstance(parsed, float) and parsed.is_integer():
        parsed = int(parsed)  # 1e4 steps
    if kind in (tuple, list) and not isinstance(parsed, Sequence):
        parsed = (parsed,)
    return path, parsed


def coerce(value: Any, kind: type, path: str, optional: bool = False) -> Any:
    """`value` as `kind` (int -> float, list <-> tuple); a bool is no int. Raises ConfigError."""
    if value is None and optional:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return fit(value, float, path)  # not float(): no float is as large as some ints
    if kind in (tuple, list) and isinstance(value, (tuple, list)):
        return kind(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = kind.__name__ + (" or None" if optional else "")
        raise ConfigError(f"'{path}' must be {wanted}, got {value!r} ({type(value).__name__})")
    return value


def read_literal(text: str) -> Any:
    """JSON, else a Python literal, else the bare string."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if text[:1] in "{[(":
        raise ConfigError(f"cannot read {text!r}: write JSON or a Python literal, and quote it for "
                          """the shell: '{"name": "yarn", "factor": 4}'""")
    return text


def component_value(path: str, value: Any) -> Any:
    """What a component's key holds: plain dicts with names. Raises ConfigError."""
    if path == PATTERN:
        return None if value is None else _layers(path, value)
    if value is None and path in OPTIONAL:
        return None
    if path in STACKS and isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError(f"'{path}' is an empty stack; name at least one component")
        return [spec(path, v) for v in value]
    return spec(path, value)


def spec(path: str, value: Any) -> dict[str, Any]:
    """A component as a plain dict with a name; a bare string stands for its name."""
    if isinstance(value, str) and value:
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"'{path}' must be a component, dict(name=..., ...) or its name, "
                          f"got {value!r}")
    value = copy.deepcopy(dict(value))
    if not isinstance(value.get("name"), str):
        raise ConfigError(f"'{path}' needs a name: dict(name=..., ...), got {value}")
    return value


def _layers(path: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"'{path}' must be a non-empty list of layers, got {value!r}")
    for layer in value:
        if not isinstance(layer, Mapping):
            raise ConfigError(f"a layer of '{path}' must be a dict, got {layer!r}")
    return [copy.deepcopy(dict(layer)) for layer in value]


def _assign_option(config: ConfigDict, slot: str, option: str, value: Any) -> None:
    node, key = _parent(config, slot)
    node[key] = with_option(slot, node[key], option, value)


def with_option(slot: str, current: Any, option: str, value: Any) -> dict[str, Any]:
    """The component `current` with one option set. Raises ConfigError where it takes none."""
    current = {"name": current} if isinstance(current, str) else current
    if current is None:
        raise ConfigError(f"'{slot}' is none and has no option '{option}'; name a component first")
    if not isinstance(current, Mapping):
        raise ConfigError(f"'{slot}' is a list; assign it whole: --config.{slot}='[...]'")
    if "." in option:
        raise ConfigError(f"'{slot}.{option}' goes too deep; assign '{slot}' whole")
    return spec(slot, {**current, option: value})


@functools.cache
def _defaults() -> ConfigDict:
    return base_config()  # only read


def _split_component(path: str) -> tuple[str, str]:
    for slot in COMPONENTS:
        if path.startswith(f"{slot}."):
            return slot, path[len(slot) + 1:]
    return path, ""


def _is_section(path: str) -> bool:
    node, key = _parent(_defaults(), path)
    return isinstance(node[key], ConfigDict)


def _parent(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """The section that holds the last key of `path`. Raises ConfigError with a suggestion."""
    node, keys = config, path.split(".")
    for i, key in enumerate(keys):
        if not isinstance(node, ConfigDict) or key not in node:
            raise ConfigError(_unknown(path, ".".join(keys[:i]), key, node))
        if i < len(keys) - 1:
            node = node[key]
    return node, keys[-1]


def _unknown(path: str, section: str, key: str, node: Any) -> str:
    if not isinstance(node, ConfigDict):
        return f"unknown key '{path}': '{section}' is a value and has no keys"
    whole = [p for p in leaf_paths(_defaults()) if p.endswith(f".{path}")]
    if whole:  # the section was left out: model.width
        return f"unknown key '{path}'; did you mean '{whole[0]}'?"
    where = f" in '{section}'" if section else ""
    return f"unknown key '{key}'{where}" + did_you_mean(key, node.keys())


def leaf_paths(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted paths of all keys of a config, sections excluded."""
    paths = []
    for key in config:
        if isinstance(config[key], ConfigDict):
            paths += leaf_paths(config[key], f"{prefix}{key}.")
        else:
            paths.append(f"{prefix}{key}")
    return paths
