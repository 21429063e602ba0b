"""xPos: a rotation whose pairs also fade with the distance, the fast ones faster."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.domains import Positive
from lcx.errors import ConfigError
from lcx.positions.rope import Rope


class Xpos(Rope):
    """Extrapolatable positions (arXiv:2212.10554): RoPE's score with pair m times zeta_m^(D/scale).

    D = id_i - id_j, zeta_m = (2m/d + gamma) / (1 + gamma), gamma 0.4, scale 512. The *product*
    fades, so far keys weigh alike rather than nothing (as under ALiBi). The authors multiply q by
    zeta^t and k by zeta^-t, with t from the centre of the text: that overflows away from it, and
    moves cached keys. Here each token fades all earlier keys, which is the same score; in a linear
    mixer it is a constant gate per pair. Checked against the formula of torchscale.
    """

    gamma: Positive = 0.4
    scale: Positive = 512.0
    interleaved: bool = True

    paper: ClassVar[str] = "arXiv:2212.10554"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(interleaved=False, scale=16.0))
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        pairs = self.width // 2
        zeta = (np.arange(pairs) / pairs + self.gamma) / (1 + self.gamma)
        return {**super().numbers(), "rate": np.log(zeta) / self.scale}

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        if not self.site.causal:
            raise ConfigError("xpos grows without bound towards the future: use a causal layer")
        rate = self.number("rate")
        rate = jnp.repeat(rate, 2) if self.interleaved else jnp.tile(rate, 2)  # both of a pair
        step, _, carry = L.advance(seq, carry)
        step = jnp.where(step < 0, jnp.nan, step)  # a decay cannot run backwards
        fade = (step[..., :1] * rate)[:, :, None]
        fade = jnp.broadcast_to(fade, (*fade.shape[:2], self.site.num_kv_heads, fade.shape[-1]))
        return L.Lanes(L.Diagonal(fade, self.rotation(seq))), carry
