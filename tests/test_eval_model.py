"""The ladder on the real model and real documents: a plain loop over logits agrees."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes
from lcx.eval.ladder import ladder
from lcx.eval.scorer import Same, _program, reads_length, stream
from lcx.eval.sliding import slide
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


READS_LENGTH = ["dynamic_ntk", dict(name="long_rope", factor=8.0),
                dict(name="long_rope", factor=8.0, dynamic=True), dict(name="dca", gain=0.3),
                ["rope", dict(name="length_temperature", gain=0.5)],
                [dict(name="randomized", evaluation="expected"), "rope"]]


@pytest.mark.parametrize("position", READS_LENGTH, ids=str)
def test_every_window_scores_as_its_tokens_do_alone(position):
    """Twin: each window is a request of its own, of exactly its tokens: 12, 16, 12, 4 and 16."""
    model = build_model(dict(vocab_size=50, width=16, depth=1, position=position, mlp=None,
                             mixer=dict(name="attention", num_heads=2)), train_length=L)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, L), np.int32),
                                    lanes.sequence(1, L))
    documents = texts([13, 21, 5, 17])
    windows = slide(documents, window=16, stride=8)
    found = {}
    for table in stream(model, variables, documents, windows, batch=2):
        found |= dict(zip(zip(table.document.tolist(), table.position.tolist()), table.nll))
    assert _program(Same(model))._cache_size() == 1  # whatever the lengths, one program
    logits = jax.jit(lambda inputs: model.apply(
        variables, inputs, lanes.sequence(1, inputs.shape[1]))[0])
    alone = {}
    for d, start, stop in ((0, 0, 12), (1, 0, 16), (1, 8, 20), (2, 0, 4), (3, 0, 16)):
        text = documents[d].tokens
        rows = np.asarray(logits(text[None, start:stop])[0], np.float64)
        for target, row in enumerate(rows, start + 1):  # a later window adds what is new in it
            alone.setdefault((d, target), np.log(np.exp(row).sum()) - row[text[target]])
    assert found.keys() == alone.keys()
    np.testing.assert_allclose([found[k] for k in alone], list(alone.values()), rtol=2e-5)
    assert reads_length(model, variables, 16)


def test_what_reads_no_length_needs_no_batches_of_one_length(model, variables):
    assert not reads_length(model, variables, 16)
