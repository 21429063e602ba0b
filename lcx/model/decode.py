"""Generation: the prompt goes through the state in pieces, then one token at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes, sharding
from lcx.domains import Count, NonNegative, PositiveFraction, Seed, checked
from lcx.errors import DataError
from lcx.model.reach import Same, reach_of

PIECES = (512, 64, 8, 1)  # a prompt is cut into these, longest first: four programs for any length
SLOTS = 128  # buffers come in multiples of this, so that requests of similar length share programs


class Decoder:
    """Continues prompts with a model; each size of piece compiles once, whatever is sampled.

    `decoder_of` gives the one that a process already has for a model.

    ids: token ids that may be drawn, 0 .. ids - 1 (a model's table may be larger than its
    tokenizer's vocabulary); all if None.
    """

    def __init__(self, model: Any, ids: int | None = None):
        self.model = model
        self.ids = model.vocab_size if ids is None else ids
        self._advance = jax.jit(self._piece, donate_argnames=("state",))
        self._fresh = jax.jit(model.init_state, static_argnums=(0, 1))

    @property
    def programs(self) -> int:
        """How many sizes of piece (and of state) have been compiled."""
        return self._advance._cache_size()

    @checked
    def generate(self, variables: Any, prompt: np.ndarray, count: Count, *,
                 temperature: NonNegative = 0.0, top_p: PositiveFraction = 1.0,
                 seed: Seed = 0) -> Iterator[np.ndarray]:
        """`count` tokens, int [B] each, that continue prompt [B,N], as soon as each is known.

        temperature 0 takes the most likely token; otherwise a token is drawn from the softmax of
        logits / temperature, among the fewest most likely tokens whose probability reaches `top_p`.
        A length-dependent scheme is told N + count. Raises ConfigError and DataError on what is
        impossible (a table of positions that ends before the last token among them), before
        anything compiles; Refusal where a layer has no step form.
        """
        prompt = np.asarray(prompt)
        if prompt.ndim != 2 or not prompt.size or not np.issubdtype(prompt.dtype, np.integer):
            raise DataError(f"a prompt is token ids [B,N] with at least one token, got "
                            f"{prompt.dtype} of shape {prompt.shape}")
        low, high = int(prompt.min()), int(prompt.max())
        if low < 0 or high >= self.model.vocab_size:
            raise DataError(f"token id {low if low < 0 else high} is outside the model's vocabulary"
                            f" of {self.model.vocab_size}; use the run's own tokenizer")
        # The last token is never read; a stream tells each piece its place, so its ids are unknown.
        call = lambda v, tokens, seq: self.model.apply(v, tokens, seq, None, method="predict")[0]
        reach_of(self.model).require(call, variables, prompt.shape[1] + count - 1)
        how = dict(temperature=np.float32(temperature), top_p=np.float32(top_p),
                   key=jax.random.key(seed), told=np.int32(prompt.shape[1] + count))
        return self._stream(variables, prompt.astype(np.int32), count, how)

    def _stream(self, variables, prompt: np.ndarray, count: int, how) -> Iterator[np.ndarray]:
        batch, length = prompt.shape
        slots = -(-(length + count) // SLOTS) * SLOTS
        # Placed as the outputs will be: a step of another sharding would be another program. Cut on
        # the host: a slice on the device is a small program for each place.
        state, start = _placed(self._fresh(batch, slots)), 0
        for size in pieces(length):
            part = _placed(jnp.asarray(prompt[:, start:start + size]))
            token, state = self._advance(variables, part, np.int32(start), state=state, **how)
            start += size
        for _ in range(count - 1):  # the next step is under way while its input is looked at
            after, state = self._advance(variables, token[:, None], np.int32(start), state=state,
                                         **how)
            yield _checked(token, start)
            token, start = after, start + 1
        yield _checked(token, start)

    def _piece(self, variables, tokens, start, told, key, temperature, top_p, state):
        seq = lanes.sequence(1, tokens.shape[1], start=start, told_length=told)
        logits, state = self.model.apply(variables, tokens, seq, state, method="predict")
        known = jnp.where(jnp.arange(logits.shape[-1]) < self.ids, logits, -jnp.inf)
        token = sample(known, jax.random.fold_in(key, start), temperature, top_p)
        return jnp.where(jnp.isnan(logits).any(-1), -1, token), state


def decoder_of(model: Any, ids: int | None = None) -> Decoder:
    """The decoder of a model, whose programs serve every call, also of an equal model."""
    return _decoder(Same(model), ids)


@functools.lru_cache(maxsize=16)
def _decoder(same: Same, ids: int | None) -> Decoder:
    return Decoder(same.model, ids)


def _placed(tree: Any) -> Any:
    """Arrays as they are without a mesh, else whole on each of its devices."""
    mesh = jax.sharding.get_mesh()
    return tree if mesh.empty else jax.device_put(tree, sharding.replicated(mesh))


def pieces(length: int) -> list[int]:
    """Sizes that add up to `length`, each one of PIECES, the longest first."""
    found = []
    for size in PIECES:
        found += [size] * (length // size)
        length %= size
    return found


def sample(logits: jax.Array, key: jax.Array, temperature: jax.Array,
           top_p: jax.Array) -> jax.Array:
    """Tokens [B] from logits [B,V]: the argmax at temperature 0, else a draw from the nucleus."""
    scaled = logits / jnp.maximum(temperature, 1e-6)
    falling = -jnp.sort(-scaled, axis=-1)
    probability = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    least = jnp.where(before < top_p, falling, jnp.inf).min(-1, keepdims=True)
    drawn = jax.random.categorical(key, jnp.where(scaled >= least, scaled, -jnp.inf))
    return jnp.where(temperature > 0, drawn, logits.argmax(-1))


def _checked(token: jax.Array, at: int) -> np.ndarray:
    token = np.asarray(token)
    if (token < 0).any():
        raise DataError(f"the logits of token {at} are not numbers: a model that diverged, or a "
                        "table that the tokens themselves read past (a number of more digits "
                        "than abacus has rows); look at its training, or ask for fewer tokens")
    return token
