"""The table, figures and page of all runs under a folder, from their rows.

  lcx report runs/quickstart
  lcx report runs/quickstart --out paper/figures
  lcx report runs/quickstart --json            every row as one JSON object

Writes report.html, which needs nothing else, each figure as SVG, PDF and PNG, and the rows as CSV
and Parquet. Rows of different code versions are refused unless --mix-versions says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lcx.cli.arguments import print_json
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUNS", help="a folder of runs, or one run")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default RUNS/report)")
    parser.add_argument("--mix-versions", action="store_true",
                        help="compare rows of different code versions, with a warning on the page")


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        from lcx.study.records import read

        print_json(read(arguments.runs))
        return 0
    write(arguments.runs, arguments.out, show, mix_versions=arguments.mix_versions)
    return 0


def write(folder, out, say: Callable[[str], None], *, mix_versions: bool = False) -> None:
    """Write a report and say what is in it."""
    from lcx.study.report import report

    done = report(folder, out=out, mix_versions=mix_versions)
    say("")
    say(done.text)
    say("* the train length. rise: bpb at the longest context minus the last one with its block "
        "inside\nthe train length; G: minus the train length as context, paired by token")
    for warning in done.warnings:
        say(f"note: {warning}")
    say(f"rows: {', '.join(str(path) for path in done.files)}")
    say(f"page: {done.page} (an arm's whole setting is under its name)")
