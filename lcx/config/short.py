"""The short spelling of an override: `position=yarn,factor=8`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lcx.config.base import COMPONENTS, LAYER_KEYS, OPTIONAL, PATTERN, base_config
from lcx.config.override import leaf_paths, parse_override, read_literal
from lcx.errors import ConfigError, did_you_mean

SECTIONS = ("experiment.model", "experiment.eval")  # what a trained model can be tested under
REPLACES = "replaces"  # no option of a component: what position, mixer or mlp takes the place of


def parse_short(text: str) -> tuple[str, Any]:
    """`"position=yarn,factor=8"` -> ("experiment.model.position", dict(name="yarn", factor=8)).

    The key is the last word of a path in experiment.model or experiment.eval, or that of a layer,
    `pattern.3.position`. `replaces=rope` among the options names the layers that are meant: those
    that use it. JSON works as in `--config.experiment.model.position=...`. Raises ConfigError with
    a suggestion.
    """
    key, equals, value = text.partition("=")
    known = {path.rsplit(".", 1)[-1]: path for path in leaf_paths(base_config())
             if path.rsplit(".", 1)[0] in SECTIONS}
    if not equals or not value:
        raise ConfigError(f"an override is KEY=VALUE, as in position=yarn,factor=8; got '{text}'")
    layer = key.startswith("pattern.")
    if not layer and key not in known:
        raise ConfigError(f"unknown key '{key}' in an override" + did_you_mean(key, known))
    path = PATTERN + key[len("pattern"):] if layer else known[key]
    component = path in COMPONENTS or layer and key.rsplit(".", 1)[-1] in LAYER_KEYS
    if not component or value[:1] in "[{" or value == "none":
        return parse_override(f"{path}={value}")
    name, *options = value.split(",")
    found, replaced = {"name": name}, None
    for option in options:
        word, equals, setting = option.partition("=")
        if not equals:
            raise ConfigError(f"'{option}' in '{text}' is no OPTION=VALUE; write {key}=NAME,"
                              "OPTION=VALUE,... or JSON")
        if word == REPLACES and key in LAYER_KEYS:
            replaced = setting
        else:
            found[word] = read_literal(setting)
    if replaced is None:
        return path, found
    return path, {REPLACES: replaced,
                  "by": None if found == {"name": "none"} and path in OPTIONAL else found}


def read_overrides(given: Any) -> list[tuple[str, Any]]:
    """Overrides as the command line takes them, or as Python has them: pairs (path, value).

    given: None; a text, or several: "position=yarn,factor=8" as after `--override`, or
    "experiment.eval.max_factor=4" as after `--config.`, with that prefix or without; or a mapping
    of either kind of key to values. Raises ConfigError on what is none of these, as `parse_short`.
    """
    if given is None:
        return []
    if isinstance(given, Mapping):
        return [_pair(str(key), value) for key, value in given.items()]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ConfigError("overrides are a text (position=yarn,factor=8), a list of these, or a "
                          f"dict of config keys; got {given!r}")
    found = [_without_prefix(text.strip()) for text in texts]
    return [(parse_override if _is_long(text) else parse_short)(text) for text in found]


def _pair(key: str, value: Any) -> tuple[str, Any]:
    key = _without_prefix(key)
    if _is_long(key):
        return key, value
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return parse_short(f"{key}={text}")


def _without_prefix(text: str) -> str:
    return text.removeprefix("--override").lstrip().removeprefix("--").removeprefix("config.")


def _is_long(text: str) -> bool:
    return text.partition("=")[0].split(".")[0] in base_config()
