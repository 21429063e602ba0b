"""HoPE (hyperbolic): channel pairs are boosted where RoPE turns them, and fade with distance."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.domains import real
from lcx.errors import ConfigError
from lcx.positions.rope import Rope
from lcx.types import wide
from lcx.weights import free


class HyperbolicHope(Rope):
    """Hyperbolic rotary position encoding (arXiv:2509.05218): q_i^T e^(-D c) B(D theta) k_j.

    D = id_i - id_j, B(a) = [[cosh a, sinh a], [sinh a, cosh a]] of each channel pair, theta RoPE's
    ladder, damping c > max theta. In the coordinates (x1 + x2) / sqrt 2 and (x1 - x2) / sqrt 2 of a
    pair that is *two real decays*, e^(-D (c - theta)) and e^(-D (c + theta)), no oscillation: xPos
    without its rotation, and the only form that is safe to compute, as cosh overflows float32 from
    88 radians on. As c is above the fastest theta, all slower pairs see a few tokens only: what
    is far reaches a query through the first pair, if c - max theta is small.

    excess: c - max theta at the start, one learned number per layer (`learned`). The paper leaves c
    "learnable or predefined"; the ladder, the learned form max theta + softplus(p) and p = 0.5 are
    those of re-implementations for event sequences (HoTHP), against whose formula, with the paper's
    equations 9 and 12 as they cite them, this was checked. No authors' code was found.
    """

    excess: Annotated[float, real(0, 700, above=True)] = float(np.log1p(np.exp(0.5)))
    learned: bool = True
    interleaved: bool = True

    paper: ClassVar[str] = "arXiv:2509.05218"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(interleaved=False, learned=False, excess=0.1))

    def numbers(self) -> dict[str, np.ndarray]:
        return {"theta": self.ladder()}

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        if not self.site.causal:
            raise ConfigError("hyperbolic_hope grows without bound towards the future: use a "
                              "causal layer")
        if not self.excess > 0:
            raise ConfigError(f"hyperbolic_hope: excess={self.excess} must be positive, or the "
                              "fastest pair would grow with the distance")
        theta, excess = self.number("theta"), self.excess
        if self.learned:
            start = nn.initializers.constant(np.log(np.expm1(self.excess)))
            excess = jax.nn.softplus(wide(self.param(
                "excess", free(start, (None,)), (1,))))
        far, near = excess + theta[0] - theta, excess + theta[0] + theta
        rate = jnp.concatenate([far, near])
        if self.interleaved:
            rate = jnp.stack([far, near], -1).reshape(-1)
        step, _, carry = L.advance(seq, carry)
        step = jnp.where(step < 0, jnp.nan, step)  # a decay cannot run backwards
        fade = (-step[..., :1] * rate)[:, :, None]
        fade = jnp.broadcast_to(fade, (*fade.shape[:2], self.site.num_kv_heads, fade.shape[-1]))
        basis = light_cone_of_neighbours if self.interleaved else light_cone_of_halves
        return L.Lanes(L.Diagonal(fade, basis=basis)), carry


def light_cone_of_halves(x: jax.Array) -> jax.Array:
    """Pairs (m, m + P) of the last axis -> ((x1 + x2), (x1 - x2)) / sqrt 2: a boost is diagonal."""
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first + second, first - second], -1) / np.sqrt(2)


def light_cone_of_neighbours(x: jax.Array) -> jax.Array:
    """The same of the pairs (2m, 2m + 1)."""
    first, second = x[..., 0::2], x[..., 1::2]
    return (jnp.stack([first + second, first - second], -1) / np.sqrt(2)).reshape(x.shape)
