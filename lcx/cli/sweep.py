"""Run every member of a config's sweep(), then write the report.

  lcx sweep configs/quickstart.py
  lcx sweep configs/quickstart.py:full --jobs 2
  lcx sweep configs/quickstart.py --list
  lcx sweep configs/quickstart.py --config.experiment.train.steps=50 --config.runtime.out=/tmp/runs

All members are checked before the first one starts. Finished ones are skipped and half-done ones
go on; one that crashes or takes longer than --timeout does not stop the others, and makes the exit
code 1. The same command, started twice, shares the members. What another version of the code has
made is neither reused nor replaced until --keep-old or --rerun says which.
"""

from __future__ import annotations

import argparse
import sys

from lcx.cli.arguments import (
    add_config,
    add_old,
    command_line,
    config_of,
    duration,
    number,
    print_json,
)
from lcx.domains import Count
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_old(parser)
    parser.add_argument("--jobs", type=number(Count), metavar="N",
                        help="members at a time, each with its share of the cores and GPUs "
                             "(default: as many as the GPUs hold, else 1)")
    parser.add_argument("--timeout", type=duration, metavar="TIME",
                        help="end a member that takes longer: 90s, 30m, 2h (default: never)")
    parser.add_argument("--list", action="store_true", help="list the members and their "
                        "state; --json has their whole settings")


def run(arguments: argparse.Namespace) -> int:
    from lcx.study.status import read_status
    from lcx.study.sweep import expand, sweep

    members = expand(config_of(arguments), arguments.overrides)
    if arguments.list:
        for member in members:
            member.state = read_status(member.folder)["state"]
        _show(members, arguments.json)
        return 0
    say = lambda text: show(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    good = sweep(members, jobs=arguments.jobs, timeout=arguments.timeout,
                 old=arguments.old, command=command_line(arguments), say=say)
    if arguments.json:
        _show(members, True)
    failed = [member for member in members if member.state != "finished"]
    if failed:
        show(f"lcx: {len(failed)} of {len(members)} members did not finish:", file=sys.stderr)
        for member in failed:
            show(f"  {member.label}: {member.error} (log: {member.folder / 'log.txt'})",
                 file=sys.stderr)
    if len(failed) < len(members):
        from lcx.cli.report import write

        write(members[0].folder.parent, None, say)
    return 0 if good else 1


def _show(members, as_json: bool) -> None:
    records = [member.record() for member in members]
    if as_json:
        print_json(records)
        return
    for member, record in zip(members, records):
        show(f"{record['run']}  {member.state:9}  {member.label}")
