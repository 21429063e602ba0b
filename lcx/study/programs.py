"""Are two models one program? Then other numbers (a base, a factor) need no other compile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from lcx import lanes


def same_program(models: tuple[Any, Any], variables: tuple[Any, Any],
                 lengths: Iterable[int]) -> bool:
    """Whether two models score windows of every length by one and the same lowered program.

    The schemes' numbers are arguments of that program, so that RoPE, PI and another base are one;
    whatever a scheme decides in Python shows in the text, and makes two.
    """
    shapes = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
              for tree in variables]
    return shapes[0] == shapes[1] and all(
        _text(models[0], shapes[0], length) == _text(models[1], shapes[1], length)
        for length in lengths)


def _text(model: Any, variables: Any, length: int) -> str:
    def run(variables, inputs, targets, seq):
        return model.apply(variables, inputs, targets, seq, state=None, method="score")[0]

    tokens = jax.ShapeDtypeStruct((1, length), np.int32)
    seq = lanes.sequence(1, length, told_length=length)
    return jax.jit(run).lower(variables, tokens, tokens, seq).as_text()
