"""Configs: Python files with `get_config(arg)`, checked in full before anything compiles."""

from lcx.config.base import COMPONENTS, base_config, is_component
from lcx.config.check import validate
from lcx.config.essence import run_id
from lcx.config.identity import canonical_json, code_version, resolve
from lcx.config.layers import apply
from lcx.config.load import load, load_space, load_sweep, split_spec
from lcx.config.override import assign, parse_override
from lcx.config.short import parse_short, read_overrides
from lcx.config.start import settled
from lcx.config.stored import from_values

__all__ = [
    "COMPONENTS",
    "apply",
    "assign",
    "base_config",
    "canonical_json",
    "code_version",
    "from_values",
    "is_component",
    "load",
    "load_space",
    "load_sweep",
    "parse_override",
    "parse_short",
    "read_overrides",
    "resolve",
    "run_id",
    "settled",
    "split_spec",
    "validate",
]
