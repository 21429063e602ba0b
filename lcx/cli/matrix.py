"""Which scheme goes with which mixer: native, partial, refused by mathematics, or unimplemented.

Examples:

  lcx matrix
  lcx matrix --mixer attention
  lcx matrix --json                            position, mixer, status, forms, code, reason
"""

from __future__ import annotations

import argparse
from collections import Counter

from lcx.cli.arguments import print_json
from lcx.errors import ConfigError, did_you_mean

SIGNS = {"native": "+", "partial": "o", "refused": "-", "unimplemented": "?"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--position", metavar="NAME", help="only this scheme")
    parser.add_argument("--mixer", metavar="NAME", help="only this mixer")


def run(arguments: argparse.Namespace) -> int:
    from lcx.mixers import matrix

    cells = list(matrix.cells())
    for key in ("position", "mixer"):
        wanted, known = getattr(arguments, key), {cell[key] for cell in cells}
        if wanted and wanted not in known:
            raise ConfigError(f"unknown {key} '{wanted}'" + did_you_mean(wanted, known))
        cells = [cell for cell in cells if wanted in (None, cell[key])]
    if arguments.json:
        print_json(cells)
        return 0
    positions = list(dict.fromkeys(cell["position"] for cell in cells))
    mixers = list(dict.fromkeys(cell["mixer"] for cell in cells))
    found = {(cell["position"], cell["mixer"]): cell for cell in cells}
    width = max(map(len, positions), default=0)
    for number, mixer in enumerate(mixers):  # mixers as columns, named by a staircase
        print(" " * width + "  " + "| " * number + mixer)
    for position in positions:
        signs = " ".join(SIGNS.get(found[position, mixer]["status"], "?")
                         if (position, mixer) in found else " " for mixer in mixers)
        print(f"{position.ljust(width)}  {signs}")
    counts = Counter(cell["status"] for cell in cells)
    print("\n" + ", ".join(f"{SIGNS[s]} {s}: {counts[s]}" for s in SIGNS))
    if arguments.position or arguments.mixer:
        for cell in cells:
            if cell.get("reason"):
                code = f" ({cell['code']})" if cell.get("code") else ""
                print(f"{cell['position']} on {cell['mixer']}: {cell['status']}{code}, "
                      f"{cell['reason']}")
    return 0
