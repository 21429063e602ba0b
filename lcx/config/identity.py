"""What a run is: its resolved config in one spelling, and the version of the code."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from lcx.errors import ConfigError


def resolve(config: Any) -> Any:
    """A config as nested dicts, lists and scalars, as JSON would give it back."""
    if isinstance(config, FieldReference):
        return resolve(config.get())
    if isinstance(config, (ConfigDict, Mapping)):
        return {str(key): resolve(config[key]) for key in config}
    if isinstance(config, (list, tuple)):
        return [resolve(v) for v in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise ConfigError(f"a config holds numbers, strings, lists and dicts, not {config!r}; "
                      "name things by strings")


def canonical_json(config: Any) -> str:
    """One spelling per config: sorted keys, no spaces, no NaN."""
    return json.dumps(resolve(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


@functools.cache
def code_version() -> tuple[str, bool]:
    """(version, dirty) of the checkout that lcx runs from, else of the installed package.

    `git describe`, and where lcx/ has changes that are in no commit a hash of their content:
    "v0.1-3-gabc+dirty.1f2e3d4a", so that two states of an edited tree are two versions.
    """
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        try:
            described = _git(root, "describe", "--always", "--tags", "--abbrev=12").strip()
            changes = _changes(root)
            return described + (f"+dirty.{changes}" if changes else ""), bool(changes)
        except (OSError, subprocess.SubprocessError):
            pass  # no git on this machine: fall back on the package
    try:
        return importlib.metadata.version("lcx"), False
    except importlib.metadata.PackageNotFoundError:
        return "unknown", False


def _changes(root: Path) -> str:
    """Eight hex digits of the files of lcx/ that differ from the commit, or "" for none."""
    listed = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all",
                  "--", "lcx").split("\0")
    if not (names := sorted(entry[3:] for entry in listed if entry)):  # "XY name"
        return ""
    found = hashlib.sha256()
    for name in names:
        path = root / name
        content = path.read_bytes() if path.is_file() else b"deleted"
        found.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    return found.hexdigest()[:8]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True,
                          errors="surrogateescape", check=True, timeout=10).stdout
