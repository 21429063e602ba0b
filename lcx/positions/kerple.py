"""KERPLE: a learned penalty that grows with the logarithm, or with a power, of the distance."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Lanes, LogitMap, Sequence, Toeplitz
from lcx.positions import Position
from lcx.types import wide
from lcx.weights import free

FLOOR = 0.01  # of every parameter, in the authors' code


class Kerple(Position):
    """Kernelized relative position (arXiv:2205.09921), d = |id_i - id_j|, two numbers per head.

    variant "log": B = -scale ln(1 + rate d), scale ~ U(0,2) and rate ~ U(0,1) at the start, both
    kept >= 0.01; "power": B = -scale d^exponent, scale ~ U(0,1), exponent ~ U(0,2) kept in
    [0.01, 2]. With exponent 1 it is ALiBi with learned slopes. The authors project the parameters;
    here they are clipped where they are used, with the gradient of the projection (it passes),
    so that a number at its floor can come back. factor: the scaled product of query and key is
    multiplied by exp(-decay d^shape) before B is added, decay ~ U(0,1) and shape ~ U(0,2), as B's
    ("wei" of the power kernel in the authors' code, github.com/chijames/KERPLE, which all of this
    was checked against). A linear mixer has no such factor.
    """

    variant: str = "log"
    factor: bool = False

    structure: ClassVar[str] = "TOEP"
    paper: ClassVar[str] = "arXiv:2205.09921"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(variant="power"),
                                            dict(variant="power", factor=True))
    represents: ClassVar[bool] = True

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.variant not in VARIANTS:
            raise ConfigError(f"kerple has no variant '{self.variant}'"
                              + did_you_mean(self.variant, VARIANTS))
        kernel, (second, second_most), (scale_starts, second_starts) = VARIANTS[self.variant]
        params = {"scale": kept(self._number("scale", scale_starts), FLOOR, None),
                  second: kept(self._number(second, second_starts), FLOOR, second_most)}
        operator = None
        if self.factor:
            faded = {"scale": kept(self._number("decay", 1.0), FLOOR, None),
                     "exponent": kept(self._number("shape", 2.0), FLOOR, 2.0)}
            operator = LogitMap(faded, fade)
        return Lanes(bias=(Toeplitz(params, kernel),), logits=operator), carry

    def _number(self, name: str, below: float):
        init = free(nn.initializers.uniform(below), ("heads",))
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


def fade(params, logits, bias, mask, distance):
    """Logits [B,H,T,S] whose products shrink with the distance [.,T,S], and whose biases do not."""
    factor = jnp.moveaxis(jnp.exp(power(params, distance)), -1, 1)
    return (logits - bias) * factor + bias


VARIANTS = {  # kernel, (second parameter, its largest value), the ranges that both start in
    "log": (logarithmic, ("rate", None), (2.0, 1.0)),
    "power": (power, ("exponent", 2.0), (1.0, 2.0)),
}
