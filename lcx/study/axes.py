"""The members of a sweep, put together from axes: product, zip and chain.

    from lcx.study import axes

    def sweep(arg=None):
        schemes = {"experiment.model.position": ["rope", "alibi"]}
        sizes = axes.zip({"experiment.model.width": [64, 128], "experiment.model.depth": [2, 4]})
        yield from axes.product(schemes, sizes, {"experiment.seed": range(3)})  # 2 x 2 x 3
        yield {"experiment.model.position": "no_pe"}  # a member is a dict: add what you like

Every function takes axes, `{path: values}`, and what these functions return, lists of members.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from lcx.errors import ConfigError

Member = dict[str, Any]
Part = Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]


def product(*parts: Part) -> list[Member]:
    """Each with each, the last one fastest. Raises ConfigError where two parts set one key."""
    return [_joined(members) for members in itertools.product(*_parts(parts))]


def zip(*parts: Part) -> list[Member]:  # noqa: A001
    """The first of each, the second of each ... Raises ConfigError on unequal lengths."""
    found = _parts(parts)
    if len({len(part) for part in found}) > 1:
        raise ConfigError("axes.zip pairs axes of one length, got lengths "
                          + ", ".join(str(len(part)) for part in found))
    return [_joined(members) for members in builtins.zip(*found)]


def chain(*parts: Part) -> list[Member]:
    """One after the other."""
    return [dict(member) for part in _parts(parts) for member in part]


def _parts(parts: Iterable[Part]) -> list[list[Member]]:
    """Each key of a mapping is a part of its own."""
    found: list[list[Member]] = []
    for part in parts:
        if not isinstance(part, Mapping):
            found.append([dict(member) for member in part])
            continue
        for path, values in part.items():
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise ConfigError(f"the axis '{path}' needs a list of values, got {values!r}")
            found.append([{path: value} for value in values])
    return found


def _joined(members: Iterable[Member]) -> Member:
    joined: Member = {}
    for member in members:
        if twice := joined.keys() & member.keys():
            raise ConfigError(f"two axes set '{min(twice)}'; one would win without a word")
        joined |= member
    return joined
