"""Which positional schemes there are.

Examples:

  lcx positions
  lcx positions --json                         name, class, lanes, paper, summary
"""

from __future__ import annotations

import argparse

from lcx.cli.arguments import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    from lcx import positions

    found = list(positions.describe())
    if arguments.json:
        print_json(found)
        return 0
    width = max((len(record["name"]) for record in found), default=0)
    for record in found:
        summary, paper = record.get("summary", ""), record.get("paper") or ""
        print(f"{record['name'].ljust(width)}  {summary}"
              + (f" ({paper})" if paper not in summary else ""))
    return 0
