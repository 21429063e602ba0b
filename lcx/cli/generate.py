"""Continue a text with a trained run, token by token.

  lcx generate runs/quickstart/0a1b2c3d4e --prompt 'def main():' --tokens 200
  lcx generate runs/quickstart/0a1b2c3d4e --prompt - --temperature 0.8 --top-p 0.95 < start.txt
  lcx generate runs/tasks-mqar/0a1b2c3d4e --prompt '3 40 7 55 3' --tokens 1     a task: token ids
  lcx generate RUN --prompt 'import' --override position=yarn,factor=8

Each token is printed as soon as it is known (--json: an object each, with its id). Memory is that
of the state: the keys of attention layers, a window of them, or a recurrent state.
"""

from __future__ import annotations

import argparse
import json
import sys

from lcx.cli.arguments import number
from lcx.domains import Count, NonNegative, PositiveFraction, Seed
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a folder runs/<name>/<run id>")
    parser.add_argument("--prompt", required=True, metavar="TEXT",
                        help="what to continue; - reads standard input")
    parser.add_argument("--tokens", type=number(Count), default=100, metavar="N",
                        help="how many (100)")
    parser.add_argument("--temperature", type=number(NonNegative), default=0.0, metavar="T",
                        help="0 (the most likely token), 1 (as the model says), or between")
    parser.add_argument("--top-p", type=number(PositiveFraction), default=1.0, metavar="P",
                        help="draw among the most likely tokens that make up P")
    parser.add_argument("--seed", type=number(Seed), default=0, help="of the draws (0)")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=NAME,OPTION=VALUE",
                        help="under another scheme than the run's own, as in lcx eval")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from lcx.config import parse_override, parse_short
    from lcx.study.generation import generate
    from lcx.study.here import stored_config
    from lcx.study.preflight import check
    from lcx.study.restore import open_run
    from lcx.study.under import OPENED

    folder = Path(arguments.run_folder)
    config = stored_config(folder, [*map(parse_override, arguments.overrides),
                                    *map(parse_short, arguments.override)], OPENED)
    check(config, training=False)
    opened = open_run(folder, config)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not arguments.json:
        _put(prompt)
    for token, text in generate(opened, prompt, arguments.tokens, top_p=arguments.top_p,
                                temperature=arguments.temperature, seed=arguments.seed):
        _put(json.dumps({"token": token, "text": text}) + "\n" if arguments.json else text)
    if not arguments.json:
        _put("\n")
    return 0


def _put(text: str) -> None:
    """Into a file every character as it is; on a terminal none that acts on it."""
    if sys.stdout.isatty():
        show(text, end="")
    else:
        sys.stdout.write(text)
    sys.stdout.flush()
