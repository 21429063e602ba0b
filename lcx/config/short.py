"""The short spelling of an override: `position=yarn,factor=8`."""

from __future__ import annotations

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
