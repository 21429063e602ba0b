"""FLOATER: positions are points on the trajectory of a learned differential equation."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.lanes import Sequence
from lcx.layers import Dense
from lcx.positions import Position
from lcx.positions.learned import look_up
from lcx.types import wide
from lcx.weights import free

STEP = 0.01  # of the equation's time per token, in the authors' code


class Floater(Position):
    """FLOATER, input form (arXiv:2003.09229): x_i + p(id_i), where dp/dt = h(t, p), p(0) learned.

    h(t, p) = W2 [relu(W1 [p, t] + b1), t] + b2 with Xavier-normal W, one token is 0.01 of time, and
    RK4 takes `substeps` steps per token: as in the authors' code (github.com/xuanqing94/FLOATER,
    read). That code also has a form per layer: one h for the whole model, a p(0) for each layer and
    each of q, k and v, which the trajectories are added to; it solves anew only every 400th update,
    with a stale gradient in between. It is not here: only mixers with projections of all three have
    a place for it, and one h for all layers with a start for each is neither a scheme per layer
    nor one shared by them (layers do not know their number).
    h = 0: one vector for all positions. rows: ids that are solved for, 8 x train_length if None;
    those beyond train_length lie outside the trained interval. Outside of rows: as `learned`.
    """

    rows: Count | None = None
    substeps: Count = 5

    paper: ClassVar[str] = "arXiv:2003.09229"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(rows=40, substeps=2),)


class Embed(nn.Module):
    """Adds the trajectory's point of each id to x [B,T,D]."""

    width: int
    train_length: int
    rows: int | None
    substeps: int

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, tokens=None) -> jax.Array:
        rows = 8 * self.train_length if self.rows is None else self.rows
        init = free(nn.initializers.normal(1.0), ("width",))
        start = wide(self.param("start", init, (self.width,)))
        xavier = nn.initializers.xavier_normal()
        layer = lambda module, name: Dense((self.width,), (None,), ("width",), use_bias=True,
                                           init=xavier, name=name, parent=module)

        def substep(module, point, number):
            """From one point to the next; gives the first."""
            # Children of the body's own module: flax 0.12.10 and later let no other into a scan.
            # Both layers see the time as one more channel.
            first, second = layer(module, "first"), layer(module, "second")

            def slope(time, point):
                now = jnp.full((1,), time, point.dtype)
                hidden = jax.nn.relu(first(jnp.concatenate([point, now])))
                return second(jnp.concatenate([hidden, now]))

            return rk4(slope, number * width, point, width), point

        width = STEP / self.substeps
        scan = nn.scan(substep, variable_broadcast="params", split_rngs={"params": False})
        _, points = scan(self, start, jnp.arange(rows * self.substeps, dtype=start.dtype))
        return x + look_up(points[:: self.substeps], seq).astype(x.dtype)


def rk4(slope, time, point, width):
    """One step of the classical Runge-Kutta method: an error of width^5, of width^4 in all."""
    one = slope(time, point)
    two = slope(time + width / 2, point + width / 2 * one)
    three = slope(time + width / 2, point + width / 2 * two)
    four = slope(time + width, point + width * three)
    return point + width / 6 * (one + 2 * two + 2 * three + four)
