"""Test a trained run at every length, under its own config or another.

  lcx eval runs/quickstart/0a1b2c3d4e
  lcx eval runs/quickstart/0a1b2c3d4e --config.experiment.eval.max_factor=32
  lcx eval runs/quickstart/0a1b2c3d4e --override position=yarn,factor=8 --override position=no_pe

Each --override is an evaluation of its own, of the same parameters under another scheme; it is
short for --config.experiment.model.position='{"name": "yarn", "factor": 8}'. Where the layers of a
hybrid differ, position=yarn,factor=8,replaces=rope or pattern.3.position=yarn says which are meant
(layer 3 of the period, from 0). Parameters that an override drops, or adds untrained, are named.
Rows under another config are added to the run's; they carry that config's hash and scheme.
"""

from __future__ import annotations

import argparse

from lcx.cli.arguments import print_json
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a folder runs/<name>/<run id>")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=NAME,OPTION=VALUE",
                        help="test under this, beside the run's own; may be repeated")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    from lcx.study import tables
    from lcx.study.distinct import distinguish
    from lcx.study.run import evaluate_member

    rows = evaluate_member(arguments.run_folder, arguments.overrides, arguments.override)
    if arguments.json:
        print_json(rows)
    else:
        show(tables.overview(distinguish(rows)))
    return 0
