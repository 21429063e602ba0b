"""Train one config, then test it at every length.

  lcx train configs/quickstart.py
  lcx train configs/quickstart.py:full --config.experiment.model.position=alibi
  lcx train configs/quickstart.py --config.runtime.mesh.fsdp=4 --no-eval
  lcx train configs/quickstart.py --dry-run      parameters, mesh, memory, FLOPs; nothing is run

The run lies in runs/<config's name>/<run id>/, where the id is a hash of the experiment part of the
config. The same command goes on with a run that was stopped, and skips one that is finished.
"""

from __future__ import annotations

import argparse
import json

from lcx.cli.arguments import add_config, add_old, config_of, print_json
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_old(parser)
    parser.add_argument("--dry-run", action="store_true",
                        help="say what would run: config, parameters, mesh, memory, FLOPs")
    parser.add_argument("--no-eval", action="store_true", help="stop before the length ladder")


def run(arguments: argparse.Namespace) -> int:
    from lcx.config import load

    config = load(config_of(arguments), arguments.overrides)
    if arguments.dry_run:
        return _dry(config, arguments.json)
    from lcx.study import records, tables
    from lcx.study.distinct import distinguish
    from lcx.study.preflight import check, check_data
    from lcx.study.run import run_member
    from lcx.study.run_folder import folder_of

    check(config)
    check_data(config)  # before there is a folder
    folder = folder_of(config)
    status = run_member(config, folder, test=not arguments.no_eval, old=arguments.old)
    rows = records.read(folder) if status["state"] == "finished" else []
    if arguments.json:
        print_json(rows)
    elif rows:
        show(tables.overview(distinguish(rows)))
        show(f"run: {folder}\nnext: lcx report {folder.parent}")
    else:
        show(f"run: {folder}\nnext: lcx eval {folder}")
    return 0


def _dry(config, as_json: bool) -> int:
    from lcx.study.dry import dry_run, text

    told = dry_run(config)
    if as_json:
        print_json([told])
    else:
        show(f"{json.dumps(told['config'], indent=1)}\n\n{text(told)}")
    return 0
