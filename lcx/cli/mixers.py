"""Which sequence mixers there are: family, formula, paper, forms and the size of their state.

Examples:

  lcx mixers
  lcx mixers mamba2 kda                        some of them
  lcx mixers --json                            name, family, summary, paper, forms, state
  lcx mixers --page docs                       a page with all of them: docs/mixers.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lcx.cli.arguments import print_json
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mixers", nargs="*", metavar="MIXER", help="all of them if none is given")
    parser.add_argument("--page", metavar="FOLDER", help="write FOLDER/mixers.md")


def run(arguments: argparse.Namespace) -> int:
    from lcx import lookup, mixers
    from lcx.study import mixers_page

    for name in arguments.mixers:
        lookup.find(mixers.PACKAGE, name)
    if arguments.page:
        show(mixers_page.write(Path(arguments.page)))
        return 0
    records = [mixers_page.record(name)
               for name in arguments.mixers or mixers_page.names_in_order()]
    if arguments.json:
        print_json(records)
        return 0
    width = max(len(record["name"]) for record in records)
    kind = max(len(record["family"]) for record in records)
    for record in records:
        paper = f" ({record['paper']})" if record["paper"] else ""
        show(f"{record['family'].ljust(kind)}  {record['name'].ljust(width)}  "
             f"{record['summary']}{paper}")
    return 0
