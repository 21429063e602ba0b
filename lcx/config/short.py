"""The short spelling of an override: `position=yarn,factor=8`."""

from __future__ import annotations

from typing import Any

from lcx.config.base import COMPONENTS, PATTERN, base_config
from lcx.config.override import leaf_paths, parse_override, read_literal
from lcx.errors import ConfigError, did_you_mean

SECTIONS = ("experiment.model", "experiment.eval")  # what a trained model can be tested under


def parse_short(text: str) -> tuple[str, Any]:
    """`"position=yarn,factor=8"` -> ("experiment.model.position", dict(name="yarn", factor=8)).

    The key is the last word of a path in experiment.model or experiment.eval; JSON works as in
    `--config.experiment.model.position=...`. Raises ConfigError with a suggestion.
    """
    key, equals, value = text.partition("=")
    known = {path.rsplit(".", 1)[-1]: path for path in leaf_paths(base_config())
             if path.rsplit(".", 1)[0] in SECTIONS}
    if not equals or not value:
        raise ConfigError(f"an override is KEY=VALUE, as in position=yarn,factor=8; got '{text}'")
    if key not in known:
        raise ConfigError(f"unknown key '{key}' in an override" + did_you_mean(key, known))
    path = known[key]
    if path not in COMPONENTS or path == PATTERN or value[:1] in "[{" or value == "none":
        return parse_override(f"{path}={value}")
    name, *options = value.split(",")
    found = {"name": name}
    for option in options:
        word, equals, setting = option.partition("=")
        if not equals:
            raise ConfigError(f"'{option}' in '{text}' is no OPTION=VALUE; write {key}=NAME,"
                              "OPTION=VALUE,... or JSON")
        found[word] = read_literal(setting)
    return path, found
