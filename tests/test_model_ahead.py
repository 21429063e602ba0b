"""Multi-token prediction: a direct loop over tokens, what it may read, what it changes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lcx import lanes as L
from lcx import sharding
from lcx.errors import ConfigError
from lcx.model import build_model
from lcx.model.ahead import Ahead
from lcx.train import build_program
from tests.train_stand_in import LENGTH, VOCAB, Batches, config

B, T, V, D, WEIGHT = 2, 12, 11, 8, 0.3
SEGMENT = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])  # a row with padding, a whole one
MODEL = dict(vocab_size=V, width=D, depth=1, position="rope", mixer=dict(
    name="attention", num_heads=2), mlp="plain", predict_ahead=2, ahead_weight=WEIGHT)


def drawn(options=MODEL):
    model = build_model(options, T)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T + 1))
    inputs, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    seq = L.sequence(B, T, segment=SEGMENT)
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), inputs, seq)))
    assert "losses" not in shapes
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape)), shapes["params"])
    numbers = jax.jit(lambda: model.init(jax.random.key(0), inputs, seq)["numbers"])()
    return model, {"params": params, "numbers": numbers}, inputs, targets, seq


def score(model, found, inputs, targets, seq):
    run = jax.jit(partial(model.apply, method="score", mutable=["losses"]))
    (nll, _), told = run(found, inputs, targets, seq)
    return nll, {name: float(value[0]) for name, value in told["losses"].items()}


def states_of(model, found, inputs, seq):
    """What the model's own head reads."""
    run = jax.jit(partial(model.apply, mutable=["intermediates"], capture_intermediates=(
        lambda module, method: module.name == "final_norm")))
    seen = run(found, inputs, seq)[1]["intermediates"]
    return seen["final_norm"]["__call__"][0]


def test_it_is_a_direct_loop(x64):
    """Each document on its own, module after module, token after token."""
    model, found, inputs, targets, seq = drawn()
    params, table = found["params"], np.asarray(found["params"]["embedding"])
    _, terms = jax.tree.map(np.asarray, score(model, found, inputs, targets, seq))
    wanted, count = {1: 0.0, 2: 0.0}, {1: 0, 2: 0}
    common = dict(width=D, train_length=T, output_scale=model.output_scale)
    for b in range(B):
        for number in sorted(set(SEGMENT[b]) - {0}):
            where = np.flatnonzero(SEGMENT[b] == number)
            text, alone = np.asarray(inputs)[b, where], L.sequence(1, len(where), told_length=T)
            x = states_of(model, found, jnp.asarray(text)[None], alone)
            for k in (1, 2):  # x_t with token t+k, as far as the document goes
                later = np.sqrt(D) * table[text[k:]][None]
                module = Ahead(model.layers[-1], common)
                x, read = jax.jit(module.apply)({"params": params[f"ahead_{k}"], "numbers": found[
                    "numbers"][f"ahead_{k}"]}, x[:, :len(text) - k], later,
                    alone[:len(text) - k])
                for t in range(len(text) - k - 1):  # ... predicts token t+k+1
                    logits = table @ np.asarray(read[0, t])
                    wanted[k] -= logits[text[t + k + 1]] - np.log(np.exp(logits).sum())
                    count[k] += 1
    for k in (1, 2):
        np.testing.assert_allclose(terms[f"further_{k}"], WEIGHT / 2 * wanted[k] / count[k],
                                   rtol=2e-6)  # the layers compute in float32


def test_the_next_token_is_scored_as_without_it(x64):
    model, found, inputs, targets, seq = drawn()
    bare = build_model({**MODEL, "predict_ahead": 0}, T)
    rest = {kind: {k: v for k, v in found[kind].items() if not k.startswith("ahead_")}
            for kind in found}
    wanted, none = bare.apply(rest, inputs, targets, seq, method="score", mutable=["losses"])
    nll, terms = score(model, found, inputs, targets, seq)
    assert not none and set(terms) == {"further_1", "further_2"}
    np.testing.assert_array_equal(nll, wanted[0])
    quiet = model.apply(found, inputs, targets, seq, method="score")[0]  # as evaluation does
    np.testing.assert_array_equal(nll, quiet)


def test_every_parameter_learns_from_further_tokens(x64):
    model, found, inputs, targets, seq = drawn()

    def total(params):
        _, told = model.apply({**found, "params": params}, inputs, targets, seq, method="score",
                              mutable=["losses"])
        return sum(map(jnp.sum, jax.tree.leaves(told)))

    for path, slope in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(
            found["params"])):
        assert np.isfinite(slope).all() and np.abs(slope).max() > 1e-9, path


def test_training_reports_and_lowers_it():
    settings = config(steps=30)
    options = {**MODEL, "vocab_size": VOCAB, "mixer": dict(name="min_gru")}
    settings.experiment.model = ConfigDict(options, convert_dict=False)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = build_program(settings, build_model(settings.experiment.model, LENGTH), mesh)
        state, constants, data, seen = program.init(), program.constants(), Batches(settings), []
        for _ in range(30):
            state, metrics = program.step(state, constants, program.place(next(data)))
            seen.append(float(metrics["auxiliary_loss"]))
    assert np.isfinite(seen).all() and np.mean(seen[-5:]) < 0.9 * np.mean(seen[:5])


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match="predict_ahead=-1"):
        build_model({**MODEL, "predict_ahead": -1}, T)
