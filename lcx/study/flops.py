"""FLOPs of a traced function, counted over its matrix products: exact, and the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable, *arguments: Any) -> int:
    """Multiply-adds x 2 of every dot product and convolution that a call would run.

    `arguments` may be abstract. A scan counts its length times, of branches the dearest counts,
    a loop of unknown length counts once. Element-wise work is left out.
    """
    return _jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr(jaxpr: Any) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
    inner = [_jaxpr(sub) for value in eqn.params.values() for sub in _programs(value)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def _programs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if isinstance(value, (tuple, list)):
        return [sub for item in value for sub in _programs(item)]
    return []
