"""The command line: `lcx COMMAND CONFIG --config.experiment.a.b=value`, one file per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lcx.cli import (
    data,
    eval,
    generate,
    matrix,
    mixers,
    positions,
    report,
    search,
    status,
    sweep,
    train,
)
from lcx.cli.arguments import Parser
from lcx.errors import ConfigError, DataError
from lcx.labels import show

# Importing a command is quick: what it needs of jax it imports when it runs.
COMMANDS = (train, eval, sweep, search, status, report, generate, matrix, mixers, positions,
            data)

EPILOG = """\
first steps:
  lcx sweep configs/quickstart.py            train short, test long, draw; minutes on a laptop
  lcx status runs/quickstart                 how far its runs are
  lcx report runs/quickstart                 the table and the page again
  lcx positions                              which schemes there are
  lcx matrix                                 which scheme goes with which mixer, and why not

one run, with overrides (a component is a name, JSON, or a list: a stack):
  lcx train configs/quickstart.py --config.experiment.model.position=alibi
  lcx train configs/quickstart.py --config.experiment.train.steps=500 \\
      --config.experiment.model.position='{"name": "yarn", "factor": 4}'

`lcx COMMAND --help` says more. docs/running.md walks through all of it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done; 1 failed; 2 a mistake in a config, an argument or the data; 75 stopped on request
    after saving (run the same command again); 130 interrupted.
    """
    own_process = argv is None
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        words, overrides = split_overrides(words)
        parser = make_parser()
        arguments = parser.parse_args(words)
        if own_process:
            from lcx.study.logs import set_up

            set_up(arguments.verbose)
        if overrides and not arguments.takes_overrides:
            parser.error(f"'{arguments.command}' takes no --config overrides")
        arguments.overrides = overrides
        return arguments.run(arguments) or 0
    except (ConfigError, DataError) as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:  # `lcx matrix | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, SystemExit) as error:
        if not type(error).__module__.startswith("lcx."):
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        return _say(error, code)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="lcx", description="Train short, test long: any positional scheme, any mixer.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the code version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        name = module.__name__.rsplit(".", 1)[-1]
        first = module.__doc__.partition("\n")[0].rstrip(".")
        command = commands.add_parser(
            name, help=first, description=module.__doc__, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("-v", "--verbose", action="store_true", help="show the whole log")
        command.add_argument("--json", action="store_true", help="one JSON object per line")
        command.set_defaults(run=module.run, takes_overrides=False)
        module.add_arguments(command)
    return parser


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--config.a.b=c` and `--config.a.b c` out: (the other words, ["a.b=c", ...])."""
    others, overrides, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            others.append(word)
            continue
        text = word.removeprefix("--config.")
        if "=" not in text:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{word} needs a value: {word}=VALUE")
            text += "=" + words.pop(0)
        overrides.append(text)
    return others, overrides


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        from lcx.config.identity import code_version

        show(f"lcx {code_version()[0]}")
        parser.exit()


def _say(error: object, code: int) -> int:
    text = " ".join(str(error).split("\n")) if code == 2 else str(error)
    show(f"lcx: error: {text}", file=sys.stderr)
    return code
