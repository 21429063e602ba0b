"""Stand-in models whose losses are known by hand, and documents to score them on."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lcx.errors import ConfigError


@dataclasses.dataclass
class Text:
    name: str
    tokens: np.ndarray
    token_bytes: np.ndarray


def texts(sizes, *, vocab=50, seed=0):
    """Random documents whose tokens span one to three bytes."""
    draw = np.random.default_rng(seed)
    return [Text(f"text-{n}", draw.integers(0, vocab, size).astype(np.int32),
                 draw.integers(1, 4, size).astype(np.int32)) for n, size in enumerate(sizes)]


def _too_much(inputs, number):
    """Losses by way of a petabyte, so that the runtime's own error is what is caught."""
    return inputs + jnp.cumsum(jnp.broadcast_to(number, (10**7, 10**8)), axis=0)[-1, -1]


@dataclasses.dataclass(eq=False)  # like a Linen module, found by identity
class StandIn:
    """NLL = by_context(tokens seen) + 0.01 target + scale x (sum of all tokens seen mod 97).

    The last term makes every loss depend on every token of the context, so a window that is cut at
    the wrong place, or a state that loses a piece, shows.
    """

    vocab_size: int = 50
    by_context: object = staticmethod(lambda seen: 0.0 * seen)
    ends_at: int | None = None  # a table with that many rows: refuses longer inputs
    memory: int | None = None  # tokens of a call that fit
    nan_at: int | None = None
    dtype: object = jnp.float32
    traces: list = dataclasses.field(default_factory=list)

    def init_state(self, batch, max_length):
        return jnp.zeros((batch,), jnp.int32)

    def apply(self, variables, inputs, targets, seq, state=None, method=None):
        assert method == "score"
        self.traces.append(inputs.shape)
        if self.ends_at is not None and inputs.shape[1] > self.ends_at:
            raise ConfigError(f"the table ends at {self.ends_at}")
        if self.memory is not None and inputs.size > self.memory:
            return _too_much(inputs, variables["scale"]), None
        before = jnp.zeros((inputs.shape[0],), jnp.int32) if state is None else state
        total = before[:, None] + jnp.cumsum(inputs, axis=1)
        seen = (seq.index + 1).astype(jnp.float32)
        nll = self.by_context(seen) + 0.01 * targets + variables["scale"] * (total % 97)
        if self.nan_at is not None:
            nll = jnp.where(seen == self.nan_at, jnp.nan, nll)
        return nll.astype(self.dtype), None if state is None else total[:, -1]

    def by_hand(self, scale, tokens, target, context):
        """The same loss of one target with `context` tokens before it, without jax."""
        seen = [int(t) for t in tokens[target - context:target]]
        return (float(self.by_context(np.float32(context))) + 0.01 * int(tokens[target])
                + scale * (sum(seen) % 97))


FAIRNESS = dict(parameters=10, flops_per_token=20, state_size=3, train_tokens=1000,
                learning_rate=1e-3, learning_rate_tuned=False, code_version="abc", dirty=False,
                config_hash="def")
