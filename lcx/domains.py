"""Stated domains: `num_heads: Count = 4` says what the number may be, and `fit` holds it to that.

A domain is an annotation, of an option of a component, of a key of the config
(`lcx.config.domains`), of an argument (`checked`) or of a flag of the command line. Whatever is
not in it raises ConfigError before anything compiles. NaN and infinity are in none, a bool is no
number, and floats are judged as float32 holds them: 1e-50 is 0 there, 1e400 infinite.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import struct
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from lcx.errors import ConfigError

INT32, INT64 = 2**31 - 1, 2**63 - 1  # of steps and shapes; of bytes on a disk
SMALLEST = 2.0**-126  # the least float32 that no device flushes to 0


@dataclasses.dataclass(frozen=True)
class Domain:
    """Numbers between low and high; above, below: without the end itself; but: nor these."""

    kind: type
    low: float
    high: float
    above: bool = False
    below: bool = False
    but: tuple[int, ...] = ()

    def __contains__(self, value: float) -> bool:
        held = value if self.kind is int else in_float32(value)
        return ((self.low < held if self.above else self.low <= held)
                and (held < self.high if self.below else held <= self.high)
                and held not in self.but)

    def __str__(self) -> str:
        kind, none = self.kind.__name__, float("inf")
        lowest = f"above {self.low:.12g}" if self.above else f"{self.low:.12g} or more"
        highest = f"below {self.high:.12g}" if self.below else f"at most {self.high:.12g}"
        if self.kind is int:
            said = f"{kind}, {lowest} ({highest})"
        else:
            ends = [e for e, end in ((lowest, self.low), (highest, self.high)) if abs(end) < none]
            said = f"{kind}, {' and '.join(ends)}" if len(ends) == 2 else (
                f"{kind}, {''.join(f'{e} and ' for e in ends)}finite in float32")
        return said + "".join(f", not {value}" for value in self.but)


def whole(low: int, high: int = INT32, **ends: Any) -> Domain:
    """The domain of whole numbers from low to high."""
    return Domain(int, low, high, **ends)


def real(low: float = -float("inf"), high: float = float("inf"), **ends: Any) -> Domain:
    """The domain of finite numbers from low to high."""
    return Domain(float, low, high, **ends)


Count = Annotated[int, whole(1)]  # of things that there must be: heads, tokens, steps
Whole = Annotated[int, whole(0)]  # where there may be none, or counted from 0
Size = Annotated[int, whole(1, INT64)]  # bytes
Seed = Annotated[int, whole(0, 2**32 - 1)]  # more would be cut to 32 bits, and meet another
Ids = Annotated[int, whole(1, 2**24)]  # position ids: float32 counts exactly up to here
Finite = Annotated[float, real()]
Positive = Annotated[float, real(0, above=True)]
NonNegative = Annotated[float, real(0)]
Fraction = Annotated[float, real(0, 1)]
PositiveFraction = Annotated[float, real(0, 1, above=True)]
BelowOne = Annotated[float, real(0, 1, below=True)]
AtLeastOne = Annotated[float, real(1)]
Expansion = Annotated[float, real(0, 1024, above=True)]  # of a width
Base = Annotated[float, real(1, above=True)]  # whose logarithm something is divided by
Reflection = Annotated[float, real(0, 2, above=True)]  # of an erase: 2 reflects


def expanded(size: int, expand: float) -> int:
    """`expand` times a size, rounded down. Raises ConfigError where nothing is left."""
    if (found := int(size * expand)) < 1:
        raise ConfigError(f"{expand} times {size} channels leave none; expand them by more")
    return found


def in_depth(layer: int, num_layers: int) -> float:
    """The share of a model's layers that lie below one of them. ConfigError where it is none."""
    if layer >= num_layers:
        raise ConfigError(f"layer={layer} must be below num_layers={num_layers}: the first is 0")
    return layer / num_layers


def in_float32(value: float) -> float:
    """A number as float32 holds it: what it cannot tell from 0 is 0; NaN where it is not finite."""
    try:
        held = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return float("nan")
    if held - held:  # inf - inf and nan - nan are NaN, which counts as true
        return float("nan")
    return 0.0 if abs(held) < SMALLEST else held


def fit(value: Any, hint: Any, path: str) -> Any:
    """`value` as an annotation asks for it (int -> float). ConfigError, under `path`, if it is not.

    Annotations that say nothing checkable let everything through.
    """
    matched, result = _match(value, hint)
    if not matched:
        raise ConfigError(f"'{path}' must be {described(hint)}, got {shown(value)} "
                          f"({type(value).__name__})")
    return result


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        matched, result = _match(value, args[0])
        inside = all(result in domain for domain in args[1:] if isinstance(domain, Domain)) \
            if matched else False
        return inside, result
    if origin in (typing.Union, types.UnionType):
        return next((found for found in (_match(value, option) for option in args) if found[0]),
                    (False, value))
    if origin is Literal:
        return value in args, value
    kind = origin or hint
    if kind in (int, float):
        return _number(value, kind)
    if kind in (str, bool):
        return type(value) is kind, value
    if kind is type(None):
        return value is None, value
    if kind in (tuple, list):
        return isinstance(value, (tuple, list)) and _elements(value, args), value
    if isinstance(kind, type) and issubclass(kind, collections.abc.Mapping):
        return isinstance(value, collections.abc.Mapping), value
    return True, value


def _number(value: Any, kind: type) -> tuple[bool, Any]:
    """Python's own number of one (NumPy's too); a bool is none."""
    wanted = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, wanted) or isinstance(value, bool):
        return False, value
    try:
        return True, kind(value)
    except OverflowError:  # a whole number beyond any float
        return False, value


def _elements(value: Any, args: tuple) -> bool:
    """Whether each element fits; of numbers there is at least one."""
    if args[1:] == (...,):
        args = args[:1] * len(value) if len(value) or not states_domain(args[0]) else args
    return not args or len(value) == len(args) and all(
        _match(element, hint)[0] for element, hint in zip(value, args))


def described(hint: Any) -> str:
    """An annotation in words: "int, 1 or more, up to 2147483647 or None"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " and ".join(str(d) for d in args[1:] if isinstance(d, Domain))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(described(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if hint is type(None):
        return "None"
    if origin in (tuple, list) and args[1:] == (...,):
        return f"a list with each {described(args[0])}"
    if origin in (tuple, list) and args:
        return f"a list of {len(args)}: " + "; ".join(map(described, args))
    return getattr(hint, "__name__", None) or str(hint)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def states_domain(hint: Any) -> bool:
    """Whether every number in an annotation has a domain, and there is one."""
    kinds = list(_numbers(hint))
    return bool(kinds) and all(kinds)


def is_numeric(hint: Any) -> bool:
    """Whether an annotation allows numbers."""
    return bool(list(_numbers(hint)))


def _numbers(hint: Any) -> Iterator[bool]:
    """For each number in an annotation, whether it has a domain."""
    if typing.get_origin(hint) is Annotated:
        yield any(isinstance(domain, Domain) for domain in typing.get_args(hint)[1:])
    elif hint in (int, float):
        yield False
    elif typing.get_origin(hint) is not Literal:
        for part in typing.get_args(hint):
            yield from _numbers(part)


def kind_of(hint: Any) -> type:
    """int or float: what the number of a domain is read as."""
    return typing.get_args(hint)[0]


@functools.cache
def hints(of: Any) -> dict[str, Any]:
    """Annotations of a component's options, or of a function's arguments; domains included."""
    fields = dataclasses.is_dataclass(of) or not inspect.isclass(of)
    return typing.get_type_hints(of if fields else of.__init__, include_extras=True)


def checked(function: Callable) -> Callable:
    """A function whose arguments are held to the domains that its annotations state."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        known = {name: hint for name, hint in hints(function).items() if states_domain(hint)}
        for name in given.arguments.keys() & known.keys():
            given.arguments[name] = fit(given.arguments[name], known[name], name)
        return function(*given.args, **given.kwargs)

    return run
