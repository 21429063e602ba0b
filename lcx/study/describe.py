"""Short names of components, for rows, tables and legends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lcx import lookup
from lcx.config import COMPONENTS, apply, base_config, canonical_json, resolve, run_id
from lcx.config.base import PATTERN
from lcx.config.override import leaf_paths
from lcx.labels import digest
from lcx.study.names import Facts

KEYS = tuple(leaf_paths(base_config()))


def component(package: str, spec: Any) -> str:
    """"rope", "yarn(factor=4.0)" where an option is not the default, "randomized+rope" a stack."""
    if spec is None:
        return "None"
    if isinstance(spec, (list, tuple)):
        return "+".join(component(package, part) for part in spec)
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = spec.pop("name")
    defaults = lookup.fields(lookup.find(package, name))
    told = [f"{key}={_option(value)}" for key, value in sorted(spec.items())
            if key not in defaults or resolve(defaults[key]) != resolve(value)]
    return f"{name}({', '.join(told)})" if told else name


def _option(value: Any) -> str:
    """A value that can be read again: nested ones, and text with marks of its own, as JSON."""
    odd = isinstance(value, str) and not re.fullmatch(r"[\w.:-]*", value)
    return canonical_json(value) if odd or isinstance(value, (dict, list)) else str(value)


def layers(config: Any, key: str, package: str) -> str:
    """The component `key` of every layer of the pattern: "rope", or "rglru/rglru/attention"."""
    model = config.experiment.model
    pattern = model.pattern or [{}]
    names = [component(package, layer.get(key, model[key])) for layer in pattern]
    return names[0] if len(set(names)) == 1 else "/".join(names)


def position(config: Any) -> str:
    return layers(config, "position", "lcx.positions")


def mixer(config: Any) -> str:
    return layers(config, "mixer", "lcx.mixers")


def mlp(config: Any) -> str:
    return layers(config, "mlp", "lcx.model.mlps")


def arm_id(config: Any) -> str:
    """A hash of the experiment without its seed: runs of one arm share it."""
    return run_id(apply(config, {"experiment.seed": 0}))


def facts(config: Any) -> Facts:
    """What names an arm that is not measured yet, as its rows will say it."""
    return Facts(position(config), mixer(config), config.runtime.label, id=arm_id(config))


def changes(own: Any, other: Any) -> dict[str, Any]:
    """The keys of experiment.model and experiment.eval that differ, with their other values."""
    found = {}
    for section in ("model", "eval"):
        before, after = resolve(own.experiment[section]), resolve(other.experiment[section])
        found |= {f"experiment.{section}.{key}": value for key, value in after.items()
                  if value != before[key] and key not in ("overrides", "every", "vocab_size")}
    return found


def test_time(own: Any, other: Any) -> str:
    """What tells an override's arm from one that was trained so: "over rope"."""
    parts = [f"over {name(own)}" for name in (position, mixer) if name(own) != name(other)]
    if mlp(own) != mlp(other):
        parts.append(f"mlp={mlp(other)}")
    rest = {path: value for path, value in changes(own, other).items()
            if path.startswith("experiment.model.") and path.rsplit(".", 1)[-1] not in (
                "mlp", "pattern", "share_position")}  # told by layer, or follows the scheme
    parts.append(overrides_label(rest))
    return " ".join(part for part in parts if part)


def overrides_label(overrides: Mapping[str, Any]) -> str:
    """What a sweep member changes beside scheme, mixer and seed: "width=64", "optimizer=sgd".

    The order of the overrides does not count; a nested setting is an id of its content.
    """
    said = ("experiment.model.position", "experiment.model.mixer", PATTERN, "experiment.seed")
    return " ".join(_change(path, resolve(value)) for path, value in sorted(overrides.items())
                    if not any(path == slot or path.startswith(f"{slot}.") for slot in said))


def _change(path: str, value: Any) -> str:
    if isinstance(value, dict) and "replaces" in value:  # in some layers, which the arm's id tells
        value = value["by"]
    if isinstance(value, dict) and path in COMPONENTS:
        text = component(COMPONENTS[path], value)
        if text != value["name"]:  # with its options, its name says enough
            return text
    elif isinstance(value, (list, dict)):
        text = f"#{digest(canonical_json(value))}"
    else:
        text = str(value)
    return f"{_key(path)}={text}"


def _key(path: str) -> str:
    """The last word of a path, and the one before where several keys end in it."""
    word = path.rsplit(".", 1)[-1]
    alike = [known for known in KEYS if known.rsplit(".", 1)[-1] == word]
    return word if len(alike) < 2 else ".".join(path.split(".")[-2:])
