"""Arguments and output that several commands share."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from lcx.errors import ConfigError


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG, as a word or as --config=CONFIG, with overrides."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="PATH.py[:ARG]")
    parser.add_argument("--config", dest="config_option", metavar="CONFIG",
                        help="the same as an option; --config.KEY=VALUE overrides a key")
    parser.set_defaults(takes_overrides=True)


def add_old(parser: argparse.ArgumentParser) -> None:
    """What to do with results that other code made: nothing unless it is said."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--rerun", dest="old", action="store_const", const="rerun",
                        help="measure again what another version of the code made")
    choice.add_argument("--keep-old", dest="old", action="store_const", const="keep",
                        help="count what another version of the code made as it is")
    parser.set_defaults(old="refuse")


def config_of(arguments: argparse.Namespace) -> str:
    """The config that was named. Raises ConfigError unless there is exactly one."""
    given = [c for c in (arguments.config, arguments.config_option) if c]
    if len(given) != 1:
        raise ConfigError(f"name one config: lcx {arguments.command} PATH.py[:ARG]"
                          + (f", not {len(given)}" if given else ""))
    return given[0]


def command_line(arguments: argparse.Namespace) -> str:
    """The command, as one would type it again."""
    words = [arguments.command, config_of(arguments)]
    words += [f"--config.{text}" for text in arguments.overrides]
    return "lcx " + shlex.join(words)


def print_json(records: Iterable[Mapping[str, Any]]) -> None:
    """One object per line."""
    for record in records:
        sys.stdout.write(json.dumps(record) + "\n")
