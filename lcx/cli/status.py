"""How far each run of a study is: state, step, loss, tokens/s, time left, error.

  lcx status runs/quickstart
  lcx status runs/quickstart --watch      again and again, until all are done
  lcx status runs/quickstart --json

Names of arms are short: <run>/config.json holds the whole setting.

The exit code is 1 where a run failed or was killed.
"""

from __future__ import annotations

import argparse
import sys
import time

from lcx.cli.arguments import Seconds, number, print_json
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUNS", help="a folder of runs, or one run")
    parser.add_argument("--watch", nargs="?", type=number(Seconds), const=2.0, metavar="SECONDS",
                        help="show it again every SECONDS (2) until all are done")


def run(arguments: argparse.Namespace) -> int:
    from lcx.study.overview import BAD, overview, table

    while True:
        records = overview(arguments.runs)
        if arguments.json:
            print_json(records)
        else:
            if arguments.watch is not None and sys.stdout.isatty():
                sys.stdout.write("\033[H\033[J")  # a clean screen
            show(table(records), flush=True)
        open_ones = any(record["state"] in ("waiting", "running") for record in records)
        if arguments.watch is None or not open_ones:
            return int(any(record["state"] in BAD for record in records))
        time.sleep(arguments.watch)
