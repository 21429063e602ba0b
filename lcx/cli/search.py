"""Search by Optuna over the space(trial) of a config: the least bpb at a length.

  lcx search my.py --trials 20
  lcx search my.py --trials 20 --metric bpb_gap --length 1024

The config file proposes each trial's overrides, as a sweep() member:

  def space(trial):
      rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
      return {"experiment.train.optimizer.learning_rate": rate}

Trials are runs like any other, and `lcx report` shows them. The same command goes on with a search
that was stopped. Needs: pip install 'lcx[search]'
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
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
    parser.add_argument("--trials", type=number(Count), default=20, metavar="N",
                        help="in all, those of earlier calls counted (default 20)")
    parser.add_argument("--metric", default="bpb", help="what is to be small (default bpb)")
    parser.add_argument("--length", type=number(Count), metavar="TOKENS",
                        help="at this context (default: the longest of the ladder)")
    parser.add_argument("--timeout", type=duration, metavar="TIME",
                        help="end a trial that takes longer: 90s, 30m, 2h (default: never)")


def run(arguments: argparse.Namespace) -> int:
    from lcx.study.search import search

    say = lambda text: show(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    trials = search(config_of(arguments), arguments.overrides, trials=arguments.trials,
                    metric=arguments.metric, length=arguments.length, old=arguments.old,
                    timeout=arguments.timeout, command=command_line(arguments), say=say)
    if arguments.json:
        print_json(dataclasses.asdict(trial) for trial in trials)
    elif trials and trials[0].value is not None:
        best = trials[0]
        words = [f"--config.{path}={value}" for path, value in best.overrides.items()]
        say(f"best: {arguments.metric} {best.value:.4f}, run {best.run}: {shlex.join(words)}")
    return int(any(trial.value is None for trial in trials))
