"""The file system is the registry: `positions/t5_bias.py` holds `T5Bias`, "t5_bias" in a config."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from lcx import domains
from lcx.errors import ConfigError, did_you_mean

_INTERNAL = {"parent", "name"}  # fields that Linen adds to every module


def class_name(name: str) -> str:
    """CamelCase of a file name: `t5_bias` -> `T5Bias`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def file_name(cls: type) -> str:
    """The name that a config uses for a component's class: the file that defines it."""
    return cls.__module__.rsplit(".", 1)[-1]


@functools.cache
def names(package: str) -> tuple[str, ...]:
    """The components of a package: modules that define the class which their file name promises."""
    found = importlib.import_module(package)
    modules = [m.name for m in pkgutil.iter_modules(found.__path__) if not m.ispkg]
    return tuple(sorted(n for n in modules if hasattr(module(package, n), class_name(n))))


def find(package: str, name: str, others: Iterable[str] = ()) -> type:
    """The class behind a component's name. Raises ConfigError with a suggestion.

    others: further names that could have been meant.
    """
    if not isinstance(name, str) or name not in names(package):
        kind = package.rsplit(".", 1)[-1].rstrip("s")
        if isinstance(name, str) and name.isidentifier() and _is_file(package, name):
            raise ConfigError(f"{kind} '{name}' is a file without a class {class_name(name)}; the "
                              "class of a component is called as its file is")
        known = [*names(package), *others]
        raise ConfigError(f"unknown {kind} '{name}'" + did_you_mean(str(name), known))
    return getattr(module(package, name), class_name(name))


def _is_file(package: str, name: str) -> bool:
    """Whether a file of that name defines classes of its own: more than helpers of components."""
    path = importlib.import_module(package).__path__
    if name not in {m.name for m in pkgutil.iter_modules(path)}:
        return False
    found = module(package, name)
    return any(inspect.isclass(value) and value.__module__ == found.__name__
               for value in vars(found).values())


def build(package: str, spec: Mapping[str, Any] | str, **injected: Any) -> Any:
    """Build a component from `dict(name="rope", base=1e4)`; a bare string stands for its name.

    `injected` holds what the builder knows and a config may not set. Raises ConfigError on an
    unknown component, an unknown field or a missing one, and on a value outside its domain.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in options:
        raise ConfigError(f"a component needs a name: dict(name=..., ...), got {options}")
    name = options.pop("name")
    cls = find(package, name)
    check_options(cls, name, options, injected)
    return cls(**fitted(cls, options, name), **injected)


def fitted(cls: type, options: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Options as their annotations ask for them (int -> float). Raises ConfigError."""
    hints = domains.hints(cls)
    return {key: domains.fit(value, hints.get(key, Any), f"{path}.{key}")
            for key, value in options.items()}


def check_options(cls: type, name: str, options: Mapping[str, Any], injected=()) -> None:
    """Raise ConfigError unless `options` are fields of `cls` that a config may set, and enough."""
    settable = {k for k in fields(cls) if k not in injected}
    for key in options:
        if key not in settable:
            raise ConfigError(f"'{name}' has no option '{key}'" + did_you_mean(key, settable))
    missing = [k for k in settable if fields(cls)[k] is dataclasses.MISSING and k not in options]
    if missing:
        raise ConfigError(f"'{name}' needs a value for: {', '.join(sorted(missing))}")


def fields(cls: type) -> dict[str, Any]:
    """Options of a component and their defaults (dataclasses.MISSING where one is required)."""
    if dataclasses.is_dataclass(cls):
        return {f.name: _default(f) for f in dataclasses.fields(cls)
                if f.init and f.name not in _INTERNAL}
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: dataclasses.MISSING if p.default is p.empty else p.default
            for p in parameters}


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def stated(component: Any) -> dict[str, Any]:
    """A component's name and the options that differ from their defaults.

    What is hashed of it: an option that is new tomorrow then changes nothing of today.
    """
    cls = type(component)
    found = {key: (getattr(component, key), default) for key, default in fields(cls).items()}
    return {"name": file_name(cls), **{key: value for key, (value, default) in found.items()
                                       if default is dataclasses.MISSING or value != default}}


def module(package: str, name: str):
    """The module of a component."""
    return importlib.import_module(f"{package}.{name}")
