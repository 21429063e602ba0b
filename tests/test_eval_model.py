"""The ladder on the real model and real documents: a plain loop over logits agrees."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes
from lcx.eval.ladder import ladder
from lcx.eval.targets import choose
from lcx.model import build_model
from tests.eval_standins import FAIRNESS, texts

L = 8


@pytest.fixture(scope="module")
def model():
    config = dict(vocab_size=50, width=16, depth=2, position="rope", mlp="plain",
                  mixer=dict(name="attention", num_heads=2))
    return build_model(config, train_length=L)


@pytest.fixture(scope="module")
def variables(model):
    inputs = jnp.zeros((1, L), jnp.int32)
    return jax.jit(model.init)(jax.random.key(0), inputs, lanes.sequence(1, L))


def _bpb(model, variables, documents, **options):
    rows = ladder(model, variables, documents, train_length=L, max_factor=2, targets=6,
                  fairness=FAIRNESS, batch_tokens=64, **options)
    return {r["length"]: r["value"] for r in rows
            if (r["metric"], r["method"]) == ("bpb", "same_target")}


def test_ladder_equals_a_loop_over_logits(model, variables):
    documents = texts([30, 40, 25, 22])
    chosen = choose(documents, block=2, reach=2 * L, count=6, seed=0)
    found = _bpb(model, variables, documents)
    assert sorted(found) == [2, 4, 6, 8, 16]
    logits = jax.jit(lambda inputs, length: model.apply(
        variables, inputs, lanes.sequence(1, length))[0], static_argnums=1)
    for c, value in found.items():
        nats = spans = 0
        for d, start in zip(chosen.document, chosen.start):
            text = documents[d].tokens[start - c:start + 2]
            # No padding and no batch: exactly the tokens that precede the last target.
            rows = np.asarray(logits(text[None, :-1], c + 1), np.float64)[0]
            for target in (c, c + 1):
                row = rows[target - 1]
                nats += np.log(np.exp(row - row.max()).sum()) + row.max() - row[text[target]]
                spans += documents[d].token_bytes[start + target - c]
        assert value == pytest.approx(nats / math.log(2) / spans, rel=1e-5)


def test_pieces_through_the_real_state(model, variables):
    documents = texts([30, 40, 25, 22])
    whole = _bpb(model, variables, documents)
    assert _bpb(model, variables, documents, chunk=5) == pytest.approx(whole, rel=1e-5)
