"""Which positional schemes there are, and what each does over distance.

Examples:

  lcx positions
  lcx positions --json                         name, class, lanes, paper, summary
  lcx positions rope yarn alibi --plot         a picture: positions.svg, or --plot FILE
  lcx positions '{"name": "yarn", "factor": 8}' '["rope", "log_n"]' --plot --length 256
  lcx positions --gallery docs                 a page with all of them: docs/positions.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Annotated, Any

from lcx.cli.arguments import number, print_json
from lcx.domains import whole
from lcx.errors import ConfigError
from lcx.labels import show

KINDS = (".svg", ".png", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schemes", nargs="*", metavar="SCHEME",
                        help="a name, or JSON as in a config; all of them if none is given")
    parser.add_argument("--plot", nargs="?", const="positions.svg", metavar="FILE",
                        help="draw the logit of a constant query and key over distance, at the "
                        "train length and at 8 times that (.svg, .png or .pdf)")
    parser.add_argument("--length", type=number(Annotated[int, whole(8)]), default=128, metavar="L",
                        help="the train length of the picture (128)")
    parser.add_argument("--gallery", metavar="FOLDER",
                        help="write FOLDER/positions.md with a picture of each scheme")


def run(arguments: argparse.Namespace) -> int:
    from lcx import lookup, positions
    from lcx.positions import listing

    specs = [spec_of(text) for text in arguments.schemes]
    for part in (part for spec in specs for part in positions.parts(spec)):
        found = lookup.find(positions.PACKAGE, part["name"])
        options = {key: value for key, value in part.items() if key != "name"}
        lookup.check_options(found, part["name"], options, ("site",))
        lookup.fitted(found, options, part["name"])
    if arguments.gallery:
        return gallery(Path(arguments.gallery), arguments.length, bool(specs))
    if arguments.plot:
        return plot(specs, Path(arguments.plot), arguments.length)
    names = list(dict.fromkeys(part["name"] for spec in specs for part in positions.parts(spec)))
    records = [listing.record(name) for name in names or lookup.names(positions.PACKAGE)]
    if arguments.json:
        print_json(records)
        return 0
    width = max((len(record["name"]) for record in records), default=0)
    for record in records:
        summary, paper = record.get("summary", ""), record.get("paper") or ""
        show(f"{record['name'].ljust(width)}  {summary}"
             + (f" ({paper})" if paper not in summary else ""))
    return 0


def spec_of(text: str) -> Any:
    """The scheme that a word names: a name, or JSON."""
    if text[:1] not in "{[":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"'{text}' is not JSON ({error.msg}); for a scheme with options write "
                          "'{\"name\": \"yarn\", \"factor\": 8}'") from None


def plot(specs: list[Any], file: Path, length: int) -> int:
    """Draw the schemes into one file."""
    from lcx.study import distances

    if file.suffix not in KINDS:
        raise ConfigError(f"--plot {file}: write to a {', '.join(KINDS)} file, and name schemes "
                          "before --plot")
    if not specs:
        raise ConfigError("--plot needs schemes: lcx positions rope alibi --plot; for all of them "
                          "--gallery FOLDER")
    show(distances.draw(specs, file, length))
    return 0


def gallery(folder: Path, length: int, chosen: bool) -> int:
    """Write the page of all schemes."""
    from lcx.study import gallery as pages

    if chosen:
        raise ConfigError("--gallery shows all schemes; leave their names out, or use --plot")
    show(pages.write(folder, train_length=length))
    return 0
