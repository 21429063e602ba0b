"""Faults to plant: ten by hand, and operators to swap, each named by its module and function.

A site is found in the syntax tree of a function, never by a line, so that it survives edits around
it; a hand-made fault whose function no longer holds its expression raises, so that it is renewed.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

SCOPE = ("positions", "mixers", "ops", "lanes", "stream", "phases", "integral", "model", "layers")

# name -> function, an expression of it (all its occurrences), what stands in its place
HAND = {
    "a dropped piece": (
        "lcx.ops.pairs:_piecewise", "transport.pieces", "transport.pieces[:2]"),
    "a window off by one": (
        "lcx.ops.pairs:mask", "key_order > query_order - window",
        "key_order >= query_order - window"),
    "a segment boundary not reset": (
        "lcx.stream:advance", "jnp.where(starts[..., None], 0.0, ids - previous)",
        "ids - previous"),
    "a sign": (
        "lcx.ops.endpoint:turn_values", "sign * L.phase(lane.rotation, seq.ids)",
        "-sign * L.phase(lane.rotation, seq.ids)"),
    "a wrong bucket edge": (
        "lcx.positions.t5_bias:bucket_of", "np.argmax(bucket == buckets - 1) + 1",
        "np.argmax(bucket == buckets - 1)"),
    "a state lost between chunks": (
        "lcx.ops.linear.chunked:_scan_states", "decay.carry(across, state)",
        "decay.carry(across, 0 * state)"),
    "a gradient stopped": (
        "lcx.integral:integrate", "increment - coarse / _COARSE",
        "jax.lax.stop_gradient(increment - coarse / _COARSE)"),
    "a lane ignored": (
        "lcx.ops.attention.reference:logits", "lanes.temperature is not None", "False"),
    "a wrong head group": (
        "lcx.ops.pairs:repeat_heads", "jnp.repeat(x, heads // x.shape[2], axis=2)",
        "jnp.concatenate([x] * (heads // x.shape[2]), axis=2)"),
    "a mask off by one": (
        "lcx.ops.pairs:mask", "key_order <= query_order", "key_order < query_order"),
}

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt),
               ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,)}
EXTREMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum",
            "cummax": "cummin", "cummin": "cummax"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: its name in results, and the bytes [begin,end) of a file that it replaces."""

    name: str
    function: str
    path: str
    before: str
    after: str
    spans: tuple[tuple[int, int], ...]
    kind: str = "by hand"

    def plant(self, root: Path) -> None:
        """Write the fault into a tree that is as it was when the fault was found."""
        found = bytearray((root / self.path).read_bytes())
        for begin, end in reversed(self.spans):
            found[begin:end] = f"({self.after})".encode()
        (root / self.path).write_bytes(bytes(found))


def by_hand(root: Path) -> list[Mutant]:
    """The faults of `HAND`. Raises ValueError where a function has lost its expression."""
    found = []
    for name, (function, before, after) in HAND.items():
        module, qualname = function.split(":")
        path = module.replace(".", "/") + ".py"
        source = (root / path).read_bytes()
        node = dict(functions(source))[qualname]
        same = ast.unparse(ast.parse(before, mode="eval"))
        spans = [span(source, n) for n in ast.walk(node)
                 if isinstance(n, ast.expr) and ast.unparse(n) == same]
        if not spans:
            raise ValueError(f"{name}: {function} holds no `{before}`; give it one that it holds")
        found.append(Mutant(name, function, path, before, after, tuple(spans)))
    return found


def drawn(root: Path, count: int, seed: int) -> list[Mutant]:
    """`count` different swaps out of all those in `SCOPE`, as many of each kind."""
    rng, kinds = random.Random(seed), {}
    for mutant in sorted(every(root), key=lambda mutant: mutant.name):
        kinds.setdefault(mutant.kind, []).append(mutant)
    found = [rng.sample(kinds[kind], len(kinds[kind])) for kind in sorted(kinds)]
    return [mutant for row in zip(*found) for mutant in row][:count]


def every(root: Path) -> Iterator[Mutant]:
    """All swaps of all functions in `SCOPE`."""
    for name in SCOPE:
        place = root / "lcx" / name
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        for path in sorted(files):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            module, source = module.removesuffix(".__init__"), path.read_bytes()
            for qualname, node in functions(source):
                seen: dict[str, int] = {}
                for kind, old, new in swaps(node):
                    before, after = ast.unparse(old), ast.unparse(new)
                    name = f"{module}:{qualname}: {before} -> {after}"
                    seen[name] = seen.get(name, 0) + 1
                    name += f" #{seen[name]}" if seen[name] > 1 else ""
                    yield Mutant(name, f"{module}:{qualname}", str(path.relative_to(root)),
                                 before, after, (span(source, old),), kind)


def functions(source: bytes) -> Iterator[tuple[str, ast.AST]]:
    """Qualified name and node of each function and method, without those inside functions."""
    def inside(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node
    return inside(ast.parse(source).body, "")


def swaps(function: ast.AST) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    """Kind of each swap, the expression, and what it becomes."""
    for node in live(function):
        match node:
            case ast.BinOp() if type(node.op) in OPERATORS:
                yield "arithmetic", node, altered(node, op=OPERATORS[type(node.op)]())
            case ast.Compare(ops=[operator]):
                for kind in COMPARISONS.get(type(operator), ()):
                    yield "comparison", node, altered(node, ops=[kind()])
            case ast.BoolOp():
                other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
                yield "boolean", node, altered(node, op=other)
            case ast.Call(func=ast.Name(id=name)) if name in EXTREMES:
                yield "extreme", node, altered(node, func=ast.Name(EXTREMES[name]))
            case ast.Call(func=ast.Attribute(attr=name)) if name in EXTREMES:
                yield "extreme", node, altered(node, func=altered(node.func, attr=EXTREMES[name]))
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                yield "constant", node, ast.Constant(value + 1)
                yield "constant", node, ast.Constant(value - 1)
        for word in getattr(node, "keywords", ()):
            if word.arg == "axis" and isinstance(word.value, (ast.Constant, ast.UnaryOp)):
                axis = ast.literal_eval(word.value)
                if isinstance(axis, int):
                    other = axis - 1 if axis else 1
                    yield "axis", word.value, ast.parse(str(other), mode="eval").body


def live(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that compute: no message of an error or a log, no annotation, no default."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert)) or _is_log(node):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "args") \
                and not isinstance(node, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from live(child)


def _is_log(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")


def altered(node, **changes):
    """A copy of a node with some fields changed."""
    node = copy.copy(node)
    for field, value in changes.items():
        setattr(node, field, value)
    return node


def span(source: bytes, node: ast.expr) -> tuple[int, int]:
    """The bytes of a node in its file."""
    lines = source.splitlines(keepends=True)
    before = lambda line: sum(map(len, lines[:line - 1]))
    return before(node.lineno) + node.col_offset, before(node.end_lineno) + node.end_col_offset

