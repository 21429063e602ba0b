"""Reading a config file: `path.py:arg`, or the config.json that a run left behind."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from lcx.config.base import base_config
from lcx.config.check import validate
from lcx.config.identity import resolve
from lcx.config.layers import apply, override, require_read
from lcx.config.override import assign_all, leaf_paths, parse_override
from lcx.config.start import settled
from lcx.config.stored import FACTS
from lcx.errors import ConfigError, did_you_mean
from lcx.labels import file_name


def load(spec: str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> ConfigDict:
    """The checked config of "configs/quickstart.py:full" (or a config.json) under overrides.

    `overrides` is text ("experiment.train.steps=10") or a dict of dotted paths.
    Raises ConfigError naming the key and what was probably meant.
    """
    return settled(_unsettled(spec, overrides))


def _unsettled(spec: str, overrides: Iterable[str] | Mapping[str, Any]) -> ConfigDict:
    config = _start(spec)
    override(config, _pairs(overrides))
    return validate(_named(config, *split_spec(spec)))


def _start(spec: str) -> ConfigDict:
    """What the file says by itself, not yet checked."""
    path, argument = split_spec(spec)
    if path.suffix == ".json":
        values = _read_json(path)
        if isinstance(values, dict):
            values = {key: values[key] for key in values if key not in FACTS}
    else:
        values = _call(path, _module(path), "get_config", argument)
    if not isinstance(values, Mapping | ConfigDict):
        raise ConfigError(f"{path}: get_config must return a config, got {values!r}")
    config = base_config()
    assign_all(config, resolve(values))
    if path.suffix != ".json":
        _blame(path, lambda: require_read(config))
    return config


def _pairs(overrides: Iterable[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    return [parse_override(text) for text in overrides]


def load_sweep(spec: str, overrides: Iterable[str] = ()) -> list[tuple[dict[str, Any], ConfigDict]]:
    """The members of a config file's `sweep()`: (its overrides, its checked config) each.

    A file without `sweep` is a sweep of one. `overrides` are laid over every member.
    """
    path, argument = split_spec(spec)
    overrides = list(overrides)
    config, start, known = _unsettled(spec, overrides), _start(spec), {}
    if path.suffix == ".json" or not hasattr(module := _module(path), "sweep"):
        return [({}, settled(config))]
    members = []
    for member in _call(path, module, "sweep", argument):
        if not isinstance(member, Mapping):
            raise ConfigError(f"{path}: sweep() must yield dicts of overrides, got {member!r}")
        # The command line has the last word, as it has over the file.
        new = apply(apply(start, member), _pairs(overrides))
        members.append((dict(member), settled(validate(_named(new, path, argument)), known)))
    if not members:
        raise ConfigError(f"{path}: sweep() yields no members")
    return members


def load_space(spec: str) -> Callable[[Any], Mapping[str, Any]]:
    """The `space(trial)` of a config file, which proposes overrides. Raises ConfigError."""
    path, _ = split_spec(spec)
    function = getattr(_module(path), "space", None) if path.suffix == ".py" else None
    if not callable(function):
        raise ConfigError(f"{path} has no space(trial); it proposes a dict of overrides, "
                          "`lcx search --help` has an example")

    def space(trial: Any) -> Mapping[str, Any]:
        found = _blame(path, lambda: function(trial))
        if not isinstance(found, Mapping):
            raise ConfigError(f"{path}: space() must return a dict of overrides, got {found!r}")
        return found
    return space


def split_spec(spec: str) -> tuple[Path, str]:
    """"path.py:arg" -> (path, arg). Raises ConfigError if there is no such file."""
    name, _, argument = spec.partition(":")
    path = Path(name)
    if path.suffix not in (".py", ".json"):
        raise ConfigError(f"a config is a Python file with get_config(), PATH.py[:ARG]; "
                          f"got '{spec}'")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f" There are: {', '.join(near)}" if near else ""
        raise ConfigError(f"no config file {path}.{hint}")
    return path, argument


def _named(config: ConfigDict, path: Path, argument: str) -> ConfigDict:
    """A study without a name has that of its file."""
    if not config.runtime.name:
        config.runtime.name = file_name(path.stem + (f"-{argument}" if argument else ""))
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error}); use the config it came from")\
            from None


def _module(path: Path) -> ModuleType:
    loader = importlib.util.spec_from_file_location(f"lcx_config_{path.stem}", path)
    module = importlib.util.module_from_spec(loader)
    _blame(path, lambda: loader.loader.exec_module(module))
    return module


def _call(path: Path, module: ModuleType, name: str, argument: str) -> Any:
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no {name}(); a config file defines get_config(arg=None)")
    takes_argument = bool(inspect.signature(function).parameters)
    if argument and not takes_argument and name == "get_config":
        raise ConfigError(f"{path}: get_config() takes no argument, got ':{argument}'")
    arguments = (argument,) if argument and takes_argument else ()

    def call() -> Any:
        result = function(*arguments)
        return list(result) if name == "sweep" else result
    return _blame(path, call)


def _blame(path: Path, action: Callable[[], Any]) -> Any:
    """Run the file's own code; an error in it becomes one line that names the file and the line."""
    try:
        return action()
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise ConfigError(f"{where}: {_message(error)}") from error


def _message(error: Exception) -> str:
    unknown = re.search(r'Key "(\w+)" does not exist', str(error))
    if unknown:  # a locked ConfigDict lists its keys but makes no suggestion
        keys = {key for path in leaf_paths(base_config()) for key in path.split(".")}
        return f"unknown key '{unknown[1]}'" + did_you_mean(unknown[1], keys)
    read = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error))
    if read:
        return f"unknown key '{read[2]}'; did you mean '{read[1]}'?"
    message = str(error.args[0]) if error.args else ""
    return " ".join(message.split()) or type(error).__name__
