"""Arguments and output that several commands share."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NoReturn

from lcx.domains import described, fit, kind_of, real
from lcx.errors import ConfigError

Seconds = Annotated[float, real(0, 1e9, above=True)]  # thirty years: waiting for more overflows


class Parser(argparse.ArgumentParser):
    """Mistakes are a line, as those of configs are; --help has the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def number(domain: Any) -> Callable[[str], Any]:
    """What reads a flag's number, and refuses it outside of its domain (`lcx.domains`)."""
    def read(text: str) -> Any:
        try:
            return fit(kind_of(domain)(text), domain, text)
        except ValueError:  # a ConfigError is one
            raise argparse.ArgumentTypeError(
                f"must be {described(domain)}, got '{text}'") from None

    read.domain = domain
    return read


def duration(text: str) -> float:
    """"90s", "30m", "2h" or plain seconds -> seconds."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        return fit(float(text[:-1] if unit else text) * (unit or 1), Seconds, text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no time; write 90s, 30m or 2h, up to 1e9 seconds") from None


duration.domain = Seconds


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
