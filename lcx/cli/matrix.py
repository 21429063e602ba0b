"""Which scheme goes with which mixer: native, partial, refused by mathematics, or unimplemented.

Examples:

  lcx matrix                                   mixers by classes of schemes
  lcx matrix --schemes                         every scheme, one sign each
  lcx matrix --mixer attention                 one mixer (or --position NAME), with the reasons
  lcx matrix --html matrix.html                a page: colours, and the reason on hover
  lcx matrix --json                            position, mixer, status, forms, code, reason
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lcx.cli.arguments import print_json
from lcx.errors import ConfigError, did_you_mean
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--position", metavar="NAME", help="only this scheme")
    parser.add_argument("--mixer", metavar="NAME", help="only this mixer")
    parser.add_argument("--schemes", action="store_true", help="a line for every scheme")
    parser.add_argument("--html", metavar="FILE", help="write a page that needs nothing else")


def run(arguments: argparse.Namespace) -> int:
    from lcx.config import code_version
    from lcx.mixers import matrix
    from lcx.study import grid as drawn

    cells = list(matrix.cells())
    for key in ("position", "mixer"):
        wanted, known = getattr(arguments, key), {cell[key] for cell in cells}
        if wanted and wanted not in known:
            raise ConfigError(f"unknown {key} '{wanted}'" + did_you_mean(wanted, known))
        cells = [cell for cell in cells if wanted in (None, cell[key])]
    if arguments.json:
        print_json(cells)
        return 0
    grid = drawn.arrange(cells)
    if arguments.html:
        try:
            Path(arguments.html).write_text(drawn.html(grid, code_version()[0]),
                                             encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write --html {arguments.html}: {error.strerror}") from error
        show(arguments.html)
        return 0
    one = arguments.position or arguments.mixer
    show(drawn.by_scheme(grid) if arguments.schemes or one else drawn.by_class(grid))
    counts = grid.counts()
    show("\n" + ", ".join(f"{sign} {status}: {counts[status]}"
                          for status, sign in drawn.SIGNS.items()))
    if one:
        for cell in cells:
            if cell["status"] != "native":
                show("\n" + drawn.told(cell).replace("\n", "\n  "))
    else:
        show("why: lcx matrix --mixer NAME, --position NAME or --html FILE")
    return 0
