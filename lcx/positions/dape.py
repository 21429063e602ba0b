"""DAPE: an MLP across heads corrects each logit from itself and its positional bias."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, LogitMap, Sequence
from lcx.positions import Position
from lcx.types import precise, wide
from lcx.weights import free, matrix


class Dape(Position):
    """Data-adaptive encoding (v1 arXiv:2405.14722, v2 arXiv:2410.04798): Z' = Z + B + MLP([Z; B]).

    Stack it over a bias B: ["alibi", "dape"], or kerple, fire. The MLP acts on the heads of a pair:
    2H -> hidden -> H with LeakyReLU(0.01). kernel 1 is v1; an odd kernel (3 in v2) also reads the
    neighbouring keys. The authors zero what is not visible in the *input* of the first convolution
    only, so that one hidden column past the last key enters the second, which is there for all rows
    but the last; here it is there for every row, so that a stream equals the whole.
    """

    hidden: Count = 32
    kernel: Count = 1

    structure: ClassVar[str] = "PAIR"
    paper: ClassVar[str] = "arXiv:2405.14722"
    examples: ClassVar[tuple[dict, ...]] = (dict(hidden=8), dict(hidden=8, kernel=3))
    represents: ClassVar[bool] = True

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.kernel % 2 == 0:
            raise ConfigError(f"dape with kernel={self.kernel}: take an odd number of keys")
        heads = self.site.num_heads

        def layer(name, inputs, outputs, axes):
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1))
            shape = (self.kernel, inputs, outputs)
            return wide(self.param(name, matrix(init, ("kernel", *axes)),
                                   shape))

        zeros = free(nn.initializers.zeros_init(), ("rank",))
        params = dict(inner=layer("inner", 2 * heads, self.hidden, ("positions", "rank")),
                      offset=wide(self.param("offset", zeros, (self.hidden,))),
                      outer=layer("outer", self.hidden, heads, ("rank", "heads")))
        # A bias of the outer layer would add one number to all logits of a row: nothing.
        return Lanes(logits=LogitMap(params, corrected)), carry


def corrected(params, logits, bias, mask, distance):
    """Logits [B,H,T,S] that hold the bias already, plus the MLP of what they are without and of
    the bias."""
    reach = params["inner"].shape[0] // 2
    seen = mask[:, None]
    both = jnp.concatenate([jnp.where(seen, logits - bias, 0.0), jnp.where(seen, bias, 0.0)], 1)
    both = jnp.pad(both, [(0, 0)] * 3 + [(0, reach)])  # the column after the last key
    hidden = _convolve(params["inner"], both) + params["offset"][:, None, None]
    hidden = jax.nn.leaky_relu(hidden, 0.01)
    # Hidden columns that only exist because other documents share the row are not read.
    beside = jnp.pad(mask, [(0, 0), (0, 0), (0, reach)])
    for shift in range(1, reach + 1):
        moved = jnp.pad(mask, [(0, 0), (0, 0), (shift, reach)])[..., :beside.shape[-1]]
        beside = beside | moved
    hidden = jnp.where(beside[:, None], hidden, 0.0)
    return logits + _convolve(params["outer"], hidden)[..., :logits.shape[-1]]


def _convolve(weight, x):
    """[B,C,T,S] -> [B,C',T,S]: each key with its neighbours, zeros outside."""
    reach = weight.shape[0] // 2
    x = jnp.pad(x, [(0, 0)] * 3 + [(reach, reach)])
    size = x.shape[-1] - 2 * reach
    taps = [precise("bcts,cd->bdts", x[..., n:n + size], weight[n])
            for n in range(weight.shape[0])]
    return sum(taps)
