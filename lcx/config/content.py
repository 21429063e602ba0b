"""Files of this machine in an experiment: the digest of what they hold, never where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lcx import lookup
from lcx.config.base import COMPONENTS
from lcx.config.identity import canonical_json
from lcx.config.layers import apply

SLOTS = ("corpus", "tokenizer")  # of experiment.data: components that may read files of one's own


def with_content(config: ConfigDict, known: dict[str, str] | None = None) -> ConfigDict:
    """The config with `content` in each component that reads files: the sha256 of what they hold.

    A component that has one keeps it, and its files are compared with it when they are read. So an
    id needs no files, and a corpus may move. known: digests found before, by spelling of the
    component, to read each once. Raises DataError where files are missing or no text.
    """
    data, known = config.experiment.data, {} if known is None else known
    if data.task is not None:
        return config
    for slot in SLOTS:
        spec = as_dict(data[slot])
        package = COMPONENTS[f"experiment.data.{slot}"]
        if "content" not in lookup.fields(lookup.find(package, spec["name"])) or \
                spec.get("content"):
            continue
        text = canonical_json(spec)
        if text not in known:
            known[text] = lookup.build(package, spec).read_content()
        if known[text]:
            data[slot] = {**spec, "content": known[text]}
    return config


def without_content(config: ConfigDict, like: ConfigDict) -> ConfigDict:
    """A copy of a config that knows no more than `like` of what its files hold."""
    copy = apply(config, {})
    for slot in SLOTS:
        if not as_dict(like.experiment.data[slot]).get("content"):
            spec = as_dict(copy.experiment.data[slot])
            copy.experiment.data[slot] = {k: v for k, v in spec.items() if k != "content"}
    return copy


def unread(config: ConfigDict, stored: ConfigDict) -> list[str]:
    """The components whose content a config knows and a stored one, made before, does not."""
    given = lambda one, slot: as_dict(one.experiment.data[slot]).get("content")
    return [slot for slot in SLOTS if given(config, slot) and not given(stored, slot)]


def as_dict(spec: Any) -> dict[str, Any]:
    """A component as dict(name=..., **options)."""
    return {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) \
        else spec.to_dict()
