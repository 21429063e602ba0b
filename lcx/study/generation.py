"""Text from a trained run, token by token."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator

import jax
import numpy as np

from lcx import sharding
from lcx.domains import Count, NonNegative, PositiveFraction, Seed, checked
from lcx.errors import ConfigError
from lcx.model.decode import decoder_of
from lcx.ops.attention import api as attention
from lcx.study.restore import Run

log = logging.getLogger("lcx.study")

@checked
def generate(run: Run, prompt: str, tokens: Count, *, temperature: NonNegative = 0.0,
             top_p: PositiveFraction = 1.0, seed: Seed = 0) -> Iterator[tuple[int, str]]:
    """Continue a text by `tokens` tokens: (id, the text that it completes) each, as they come.

    A token that ends inside a character has an empty text; what is no UTF-8 in the end is shown as
    a replacement character. Raises ConfigError where the prompt is empty, and what
    `lcx.model.decode` raises.
    """
    ids = np.asarray(run.tokenizer.encode(prompt.encode("utf-8")), np.int32)
    if not len(ids):
        raise ConfigError("the prompt has no tokens; give at least one to continue")
    mesh, backend = sharding.make_mesh(**run.config.runtime.mesh), run.config.runtime.backend
    if not attention.streams(backend):
        log.warning("the attention backend '%s' takes whole texts; 'auto' generates", backend)
        backend = "auto"
    with jax.set_mesh(mesh), attention.backend(backend):
        stream = decoder_of(run.model, run.tokenizer.vocab_size).generate(
            run.variables, ids[None], tokens, temperature=temperature, top_p=top_p, seed=seed)
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for number in range(1, tokens + 1):
        # Entered for each token: a generator that is left alone must not keep the mesh set.
        with jax.set_mesh(mesh), attention.backend(backend):
            token = int(next(stream)[0])
        yield token, text.decode(run.tokenizer.decode([token]), final=number == tokens)
