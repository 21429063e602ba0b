"""Prepare a config's corpus and say what is in it.

Examples:

  lcx data configs/quickstart.py
  lcx data configs/quickstart.py --config.experiment.data.corpus='{"name":"files","paths":"txt/"}'
"""

from __future__ import annotations

import argparse
import json

from lcx.cli.arguments import add_config, config_of
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    from lcx.config import load

    config = load(config_of(arguments), arguments.overrides)
    from lcx import data

    loaded = data.load(config.experiment.data, seed=config.experiment.seed,
                       cache=config.runtime.data_cache or None)
    if config.experiment.data.task is not None:
        show(json.dumps(loaded.describe()) if arguments.json else loaded.summary())
        return 0
    found = loaded.describe()
    found["unigram_bits_per_byte"] = loaded.unigram_bits_per_byte()
    if arguments.json:
        show(json.dumps(found))
        return 0
    for name, split in found["splits"].items():
        reach = ", ".join(f"{count} of {length}+" for length, count in
                          split["documents_at_least"].items())
        show(f"{name:11} {split['documents']:>8,} documents  {split['tokens']:>12,} tokens  "
             f"{split['bytes']:>12,} bytes  {reach and f'({reach} tokens)'}")
    show(f"vocabulary {found['vocab_size']}, unigram baseline "
         f"{found['unigram_bits_per_byte']:.3f} bits per byte")
    show(f"prepared in {found['folder']}, content {found['content_hash'][:12]}")
    return 0
