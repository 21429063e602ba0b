"""An override of position, mixer or mlp goes to every layer that it means, or raises.

Layers of the pattern may name their own; one that does never sees the model's. So these overrides
are read against what each layer uses in the end, not against the key that they name.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lcx import lookup
from lcx.config.base import LAYER_KEYS, PATTERN, base_config
from lcx.config.identity import resolve
from lcx.config.override import assign, assign_all, component_value, with_option
from lcx.errors import ConfigError, did_you_mean

MODEL = "experiment.model"
Changes = Mapping[str, Any] | Iterable[tuple[str, Any]]


def apply(config: ConfigDict, overrides: Changes) -> ConfigDict:
    """A new config with `{"experiment.model.position": dict(name="alibi"), ...}` set; see
    `override`."""
    new = base_config()
    assign_all(new, resolve(config))
    override(new, overrides)
    return new


def override(config: ConfigDict, changes: Changes) -> None:
    """Set keys in order, as a dict of paths or (path, value) pairs.

    position, mixer and mlp reach all layers where they use one, also those that name it themselves.
    Where they differ it takes `pattern.3.position` (a layer, from 0 in the period) or
    {"replaces": "rope", "by": dict(name="yarn", factor=4)}. Beside a whole new `pattern` in the
    same changes they are what its layers take that name none. Raises ConfigError where a change
    would reach no layer.
    """
    pairs = list(changes.items() if isinstance(changes, Mapping) else changes)
    whole = [pair for pair in pairs if pair[0] == PATTERN]
    for path, value in whole:
        assign(config, path, value)
    fresh = bool(whole) and config.experiment.model.pattern is not None
    for path, value in pairs:
        if path == PATTERN:
            continue
        if (target := _target(path)) is None:
            assign(config, path, value)
        elif fresh and target.layer is None and not _replaces(value):
            assign(config, path, value)
            _require_reader(config.experiment.model, target.key)
        else:
            _assign_layers(config.experiment.model, path, target, value)


def require_read(config: ConfigDict) -> None:
    """Raise ConfigError where the model's position, mixer or mlp was set and no layer takes it."""
    model, defaults = config.experiment.model, base_config().experiment.model
    for key in LAYER_KEYS:
        if spelt_out(key, model[key]) != spelt_out(key, defaults[key]):
            _require_reader(model, key)


def layers(model: Mapping[str, Any], key: str) -> list[Any]:
    """The position, mixer or mlp of each layer of the period, its own or the model's."""
    return [layer.get(key, model[key]) for layer in model["pattern"] or [{}]]


def in_effect(config: ConfigDict) -> dict[str, Any]:
    """The experiment by what its layers use, options in full: equal where nothing differs."""
    found = resolve(config.experiment)
    model = found["model"]
    of = {key: [spelt_out(key, one) for one in layers(model, key)] for key in LAYER_KEYS}
    rest = {k: v for k, v in model.items() if k not in LAYER_KEYS and k != "pattern"}
    return {**found, "model": {**rest, "layers": of}}


def spelt_out(key: str, value: Any) -> Any:
    """A component with its defaults written out, so that two spellings of one are equal."""
    if isinstance(value, (list, tuple)):
        return [spelt_out(key, part) for part in value]
    if value is None:
        return None
    value = {"name": value} if isinstance(value, str) else dict(value)
    try:
        fields = lookup.fields(lookup.find(LAYER_KEYS[key], value["name"]))
    except ConfigError:  # no such component: validate says so, with its path
        fields = {}
    kinds = (type(None), bool, int, float, str, list, tuple, Mapping)
    return resolve({k: v for k, v in fields.items() if isinstance(v, kinds)} | value)


@dataclasses.dataclass(frozen=True)
class _Target:
    """What a path names: position, mixer or mlp, of one layer or all, and perhaps one option."""

    key: str
    layer: int | None = None
    option: str = ""


def _target(path: str) -> _Target | None:
    if path.startswith(f"{PATTERN}."):
        number, _, rest = path[len(PATTERN) + 1:].partition(".")
        key, _, option = rest.partition(".")
        if not number.isdecimal() or not key:
            raise ConfigError(f"'{path}': name a layer by its number in the period, from 0, and "
                              f"what to set there, as in {PATTERN}.0.position")
        if key not in LAYER_KEYS:
            raise ConfigError(f"a layer has no '{key}' ('{path}')" + did_you_mean(key, LAYER_KEYS))
        return _Target(key, int(number), option)
    key, _, option = path.removeprefix(f"{MODEL}.").partition(".")
    inside = path.startswith(f"{MODEL}.") and key in LAYER_KEYS
    return _Target(key, None, option) if inside else None


def _assign_layers(model: ConfigDict, path: str, target: _Target, value: Any) -> None:
    slot, now = f"{MODEL}.{target.key}", layers(model, target.key)
    if target.layer is not None:
        if target.layer >= len(now):
            raise ConfigError(f"'{path}': the period has {len(now)} layer"
                              f"{'s' if len(now) > 1 else ''}, counted from 0")
        chosen = [target.layer]
    elif _replaces(value) and not target.option:
        chosen = _using(target.key, now, value["replaces"])
        value = value["by"]
    else:
        chosen = list(range(len(now)))
        if any(spelt_out(target.key, one) != spelt_out(target.key, now[0]) for one in now):
            raise ConfigError(
                f"'{path}' could mean several layers of the pattern, which differ: "
                f"{_listed(target.key, now)}. Name a layer, pattern.{len(now) - 1}.{target.key}=..."
                f", or what is replaced: {target.key}=NAME,replaces="
                f"{_name(now[-1])} (in Python and JSON "
                f'{{"replaces": "{_name(now[-1])}", "by": ...}})')
    for place in chosen:
        now[place] = (with_option(slot, now[place], target.option, value) if target.option
                      else component_value(slot, value))
    _write(model, target.key, now)


def _write(model: ConfigDict, key: str, new: Sequence[Any]) -> None:
    """Put what each layer shall use where it is read from: the layer, or the model's default."""
    pattern = [copy.deepcopy(dict(layer)) for layer in model.pattern or [{}]]
    takers = [place for place, layer in enumerate(pattern) if key not in layer]
    together = takers and all(new[place] == new[takers[0]] for place in takers)
    for place, layer in enumerate(pattern):
        if key in layer or not (together or new[place] == model[key]):
            layer[key] = new[place]
    if together:
        model[key] = new[takers[0]]
    if model.pattern is not None:
        model.pattern = pattern


def _using(key: str, now: Sequence[Any], wanted: Any) -> list[int]:
    """The layers that use what is to be replaced: by name, or in full by its options."""
    if wanted is None or isinstance(wanted, str):
        found = [place for place, one in enumerate(now) if _name(one) == (wanted or "none")]
    else:
        found = [place for place, one in enumerate(now)
                 if spelt_out(key, one) == spelt_out(key, wanted)]
    if not found:
        raise ConfigError(f"no layer uses the {key} that is to be replaced, {wanted!r}; there are: "
                          f"{_listed(key, now)}")
    return found


def _replaces(value: Any) -> bool:
    if not isinstance(value, Mapping) or "replaces" not in value or "name" in value:
        return False
    if value.keys() != {"replaces", "by"}:
        raise ConfigError('what replaces part of the layers is {"replaces": NAME, "by": '
                          f"COMPONENT}}, got {dict(value)}")
    return True


def _require_reader(model: ConfigDict, key: str) -> None:
    pattern = model.pattern or [{}]
    if all(key in layer for layer in pattern):
        raise ConfigError(f"{MODEL}.{key}={_told(key, model[key])} reaches no layer: each of the "
                          f"pattern names its own ({_listed(key, layers(model, key))}). Leave it "
                          "out, or change the pattern")


def _listed(key: str, now: Sequence[Any]) -> str:
    """"layers 0, 1 use no_pe; layer 2 uses rope"."""
    users: dict[str, list[str]] = {}
    for place, one in enumerate(now):
        users.setdefault(_told(key, one), []).append(str(place))
    return "; ".join(f"layer{'s' if len(of) > 1 else ''} {', '.join(of)} "
                     f"use{'' if len(of) > 1 else 's'} {told}" for told, of in users.items())


def _name(value: Any) -> str:
    """"rope", "randomized+rope" for a stack, "none" for nothing."""
    if isinstance(value, (list, tuple)):
        return "+".join(_name(part) for part in value)
    return "none" if value is None else value if isinstance(value, str) else value["name"]


def _told(key: str, value: Any) -> str:
    """The name with those options that are not the default: "rope(base=1000000.0)"."""
    if isinstance(value, (list, tuple)):
        return "+".join(_told(key, part) for part in value)
    full, plain = spelt_out(key, value), spelt_out(key, _name(value))
    options = [f"{k}={v}" for k, v in (full or {}).items() if k != "name"
               and (k not in plain or plain[k] != v)]
    return _name(value) + (f"({', '.join(options)})" if options else "")
