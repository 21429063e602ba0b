"""Imports go down a floor, never up or across: the order in which the house can be read."""

import ast
from pathlib import Path

import pytest

import lcx

ROOT = Path(lcx.__file__).parent
FLOORS = (
    {"domains", "errors", "types", "integral", "labels", "lanes", "lookup", "phases", "sharding",
     "spans", "stream", "weights"},  # may know each other
    {"ops"},
    {"layers"},
    {"positions"},
    {"mixers"},
    {"model"},
    {"config", "data", "tasks", "train", "eval"},
    {"study"},
    {"cli"},
    {"__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path: Path) -> set[str]:
    """The first component below lcx of every import of a file, lazy ones included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module from lcx on"
            inside = node.module == "lcx"
            modules = [f"lcx.{alias.name}" for alias in node.names] if inside else [node.module]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith("lcx.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in FLOOR, f"{own} has no floor: give it one here"
    for other in imported(path) - {own}:
        assert other in FLOOR, f"lcx.{other} is unknown"
        down = FLOOR[other] < FLOOR[own] or FLOOR[other] == FLOOR[own] == 0
        assert down, f"{path.relative_to(ROOT)} on floor {FLOOR[own]} imports lcx.{other} above it"
