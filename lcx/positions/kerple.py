"""KERPLE: a learned penalty that grows with the logarithm, or with a power, of the distance."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Lanes, Sequence, Toeplitz
from lcx.positions import Position
from lcx.types import wide

FLOOR = 0.01  # of every parameter, in the authors' code


class Kerple(Position):
    """Kernelized relative position (arXiv:2205.09921), d = |id_i - id_j|, two numbers per head.

    variant "log": B = -scale ln(1 + rate d), scale ~ U(0,2) and rate ~ U(0,1) at the start, both
    kept >= 0.01; "power": B = -scale d^exponent, scale ~ U(0,1), exponent ~ U(0,2) kept in
    [0.01, 2]. With exponent 1 it is ALiBi with learned slopes. The authors project the parameters;
    here they are clipped where they are used, with the gradient of the projection (it passes),
    so that a number at its floor can come back. Checked against the authors' code
    (github.com/chijames/KERPLE); its factor on the logits (wei) is left out.
    """

    variant: str = "log"

    structure: ClassVar[str] = "TOEP"
    paper: ClassVar[str] = "arXiv:2205.09921"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(variant="power"))

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.variant not in VARIANTS:
            raise ConfigError(f"kerple has no variant '{self.variant}'"
                              + did_you_mean(self.variant, VARIANTS))
        kernel, (second, second_most), (scale_starts, second_starts) = VARIANTS[self.variant]
        params = {"scale": kept(self._number("scale", scale_starts), FLOOR, None),
                  second: kept(self._number(second, second_starts), FLOOR, second_most)}
        return Lanes(bias=(Toeplitz(params, kernel),)), carry

    def _number(self, name: str, below: float):
        init = nn.with_logical_partitioning(nn.initializers.uniform(below), ("heads",))
        return wide(self.param(name, init, (self.site.num_heads,)))


def kept(value, least, most):
    """`value` clipped to [least, most], with the gradient of the identity."""
    fixed = jax.lax.stop_gradient
    return fixed(jnp.clip(value, least, most)) + (value - fixed(value))


def logarithmic(params, distance):
    """Distances [...] -> [..., H]."""
    distance = jnp.abs(distance)[..., None]
    return -params["scale"] * jnp.log1p(params["rate"] * distance)


def power(params, distance):
    """The same; d^p and its derivatives are infinite at d = 0, so that place is masked before."""
    distance = jnp.abs(distance)[..., None]
    apart = distance > 0
    grown = jnp.where(apart, distance, 1.0) ** params["exponent"]
    return -params["scale"] * jnp.where(apart, grown, 0.0)


VARIANTS = {  # kernel, (second parameter, its largest value), the ranges that both start in
    "log": (logarithmic, ("rate", None), (2.0, 1.0)),
    "power": (power, ("exponent", 2.0), (1.0, 2.0)),
}
