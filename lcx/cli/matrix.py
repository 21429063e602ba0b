"""Which scheme goes with which mixer: native, partial, refused by mathematics, or unimplemented.

Examples:

  lcx matrix                                   mixers by classes of schemes, each scheme named
  lcx matrix linear_ramp                       one scheme or one mixer, with the reasons
  lcx matrix --mixer gla --position rope       one cell
  lcx matrix --schemes                         every scheme, one sign each
  lcx matrix --html matrix.html                a page: colours, and the reason on hover
  lcx matrix --json                            position, mixer, status, forms, code, reason
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lcx.cli.arguments import print_json
from lcx.errors import ConfigError
from lcx.labels import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("one", nargs="?", metavar="NAME", help="only this scheme or mixer")
    parser.add_argument("--position", metavar="NAME", help="only this scheme")
    parser.add_argument("--mixer", metavar="NAME", help="only this mixer")
    parser.add_argument("--schemes", action="store_true", help="a line for every scheme")
    parser.add_argument("--html", metavar="FILE", help="write a page that needs nothing else")


def run(arguments: argparse.Namespace) -> int:
    from lcx import lookup
    from lcx.config import code_version
    from lcx.mixers import matrix
    from lcx.study import grid as drawn

    known = {"position": lookup.names("lcx.positions"), "mixer": lookup.names("lcx.mixers")}
    wanted = {key: getattr(arguments, key) for key in known}
    if arguments.one:
        if any(wanted.values()):
            raise ConfigError(f"name '{arguments.one}' alone, or use --position and --mixer")
        kind = "mixer" if arguments.one in known["mixer"] else "position"
        wanted[kind] = arguments.one
    for key, name in wanted.items():
        if name:
            lookup.find(f"lcx.{key}s", name, known["mixer"] if arguments.one else ())
            known[key] = (name,)
    cells = matrix.cells(known["position"], known["mixer"])
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
    one = any(wanted.values())
    show(drawn.by_scheme(grid) if arguments.schemes or one else drawn.by_class(grid))
    counts = grid.counts()
    show("\n" + ", ".join(f"{sign} {status}: {counts[status]}"
                          for status, sign in drawn.SIGNS.items()))
    if one:
        for cell in cells:
            if cell["status"] != "native":
                show("\n" + drawn.told(cell).replace("\n", "\n  "))
    else:
        if not arguments.schemes:
            show("\n" + drawn.members(grid))
        show("why: lcx matrix NAME (of a scheme or mixer) or --html FILE")
    return 0
