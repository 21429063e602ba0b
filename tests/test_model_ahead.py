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
from lcx.model import ahead, build_model
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
    assert set(shapes) == {"params", "numbers"}  # nothing that is sown stays among the variables
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape)), shapes["params"])
    numbers = jax.jit(lambda: model.init(jax.random.key(0), inputs, seq)["numbers"])()
    return model, {"params": params, "numbers": numbers}, inputs, targets, seq


def score(model, found, inputs, targets, seq):
    run = jax.jit(partial(model.apply, method="score", mutable=["further"]))
    (nll, _), told = run(found, inputs, targets, seq)
    return nll, told["further"]["nll"]


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
    weights = np.random.default_rng(1).random((B, T)) * (SEGMENT > 0)
    _, terms = score(model, found, inputs, targets, seq)
    common = dict(width=D, train_length=T, output_scale=model.output_scale)
    wanted, counted = np.zeros((2, B, T)), np.zeros((2, B, T))
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
                for t in range(len(text) - k):  # ... predicts the target of token t+k
                    logits = table @ np.asarray(read[0, t])
                    wanted[k - 1, b, where[t]] = np.log(np.exp(logits).sum()) - logits[
                        targets[b, where[t + k]]]
                    counted[k - 1, b, where[t]] = weights[b, where[t + k]]
    for k in (1, 2):
        got = ahead.weights_ahead(weights, k, segment=SEGMENT)
        np.testing.assert_array_equal(got, counted[k - 1])
        np.testing.assert_allclose((terms[k - 1] * got).sum(), WEIGHT / 2 * (
            wanted[k - 1] * counted[k - 1]).sum(), rtol=2e-6)  # the layers compute in float32


@pytest.mark.parametrize("told", [("document",), ("segment",), ("segment", "document")], ids=str)
def test_a_target_counts_where_it_is_of_the_own_document(told):
    """The batches of the three packings in small: documents of 1 to 9 tokens in rows of 12."""
    owner = np.repeat(np.arange(9), [3, 1, 9, 2, 6, 1, 1, 4, 10])[:3 * T + 1]
    batch = dict(weights=np.float32(owner[1:] == owner[:-1]).reshape(3, T) * [[1.0], [0.5], [0.2]],
                 document=owner[:-1].reshape(3, T), segment=1 + owner[:-1].reshape(3, T))
    for k in range(4):
        got = ahead.weights_ahead(batch["weights"], k, **{name: batch[name] for name in told})
        for row, place in np.ndindex(3, T):
            here = row * T + place
            inside = place + k < T and owner[here] == owner[here + k + 1]
            assert got[row, place] == inside * np.float32([1.0, 0.5, 0.2])[row], (k, row, place)


def test_the_next_token_is_scored_as_without_it(x64):
    model, found, inputs, targets, seq = drawn()
    bare = build_model({**MODEL, "predict_ahead": 0}, T)
    rest = {kind: {k: v for k, v in found[kind].items() if not k.startswith("ahead_")}
            for kind in found}
    wanted, none = bare.apply(rest, inputs, targets, seq, method="score", mutable=["further"])
    nll, terms = score(model, found, inputs, targets, seq)
    assert not none and len(terms) == 2
    np.testing.assert_array_equal(nll, wanted[0])
    quiet = model.apply(found, inputs, targets, seq, method="score")[0]  # as evaluation does
    np.testing.assert_array_equal(nll, quiet)


def test_every_parameter_learns_from_further_tokens(x64):
    model, found, inputs, targets, seq = drawn()

    def total(params):
        _, told = model.apply({**found, "params": params}, inputs, targets, seq, method="score",
                              mutable=["further"])
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


def one_step(batch, mesh=(1, 1, 1), accumulate=1):
    """Gradients (the update of SGD) and metrics of a step in float64 from the same start."""
    settings = config(optimizer=dict(name="sgd", learning_rate=1.0), clip=0.0, rows=8,
                      schedule=dict(name="constant"), accumulate=accumulate, mesh=mesh)
    options = {**MODEL, "vocab_size": VOCAB, "dtype": "float64"}
    settings.experiment.model = ConfigDict(options, convert_dict=False)
    mesh = sharding.make_mesh(*mesh)
    with jax.set_mesh(mesh):
        program = build_program(settings, build_model(settings.experiment.model, LENGTH), mesh)
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        start = jax.tree.map(lambda x: np.asarray(x, np.float64) if floating(x) else x,
                             jax.device_get((program.init(), program.constants())))
        state = jax.device_put(start[0], jax.tree.map(lambda x: x.sharding, program.abstract))
        constants = jax.device_put(start[1], sharding.replicated(mesh))
        state, metrics = program.step(state, constants, program.place(batch))
    slope = jax.tree.map(lambda a, b: a - np.asarray(b), start[0].params, state.params)
    return slope, {name: float(x) for name, x in metrics.items()}, program, start


def packed():
    """Rows of several documents without segments, of fractional weights, two of them of none."""
    rng, shape = np.random.default_rng(3), (8, LENGTH)
    owner = np.sort(rng.integers(0, 20, 8 * LENGTH + 1))
    tokens = rng.integers(0, VOCAB, 8 * LENGTH + 1).astype(np.int32)
    weights = (rng.random(8 * LENGTH) ** 3 * (owner[1:] == owner[:-1])).reshape(shape)
    weights[[2, 5]] = 0
    return {"inputs": tokens[:-1].reshape(shape), "targets": tokens[1:].reshape(shape),
            "weights": weights.astype(np.float32), "document": owner[:-1].reshape(shape)}, owner


def segmented():
    """The same with a segment per document and padding behind, so that rows differ in how many
    targets they have at each distance."""
    batch, _ = packed()
    segment = batch["document"] - batch["document"][:, :1] + 1
    segment[4:, 3:] = 0
    return {**batch, "segment": segment, "weights": batch["weights"] * (segment > 0),
            "document": np.where(segment, batch["document"], -1)}


@pytest.fixture(scope="module")
def whole_rows():
    with jax.enable_x64(True):
        return one_step(segmented())


@pytest.fixture(scope="module")
def whole_batch():
    with jax.enable_x64(True):
        return one_step(packed()[0])


def test_the_loss_is_the_mean_over_the_own_weights_of_each_term(whole_batch, x64):
    """Each term by a loop over the places of the batch, and over whose tokens they are."""
    (_, metrics, program, start), (batch, owner) = whole_batch, packed()
    found = jax.tree.map(jnp.asarray, {"params": start[0].params, **start[1].variables})
    (nll, _), told = program.model.apply(found, batch["inputs"], batch["targets"],
                                         L.sequence(1, LENGTH), method="score",
                                         mutable=["further"])
    total = 0.0
    for k, term in enumerate(np.asarray((nll, *told["further"]["nll"]))):
        above = below = 0.0
        for row, place in np.ndindex(8, LENGTH):
            here = row * LENGTH + place
            if place + k < LENGTH and owner[here] == owner[here + k + 1]:
                weight = float(batch["weights"][row, place + k])
                above, below = above + weight * term[row, place], below + weight
        assert below > 0.1
        total += above / below
    assert metrics["loss"] + metrics["auxiliary_loss"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("mesh, accumulate", [
    ((1, 1, 1), 2), ((1, 1, 1), 8), ((2, 1, 1), 4), ((2, 2, 2), 2)], ids=str)
def test_the_update_is_the_same_however_the_batch_is_cut(mesh, accumulate, whole_rows, x64):
    wanted, row, *_ = whole_rows
    got, other, *_ = one_step(segmented(), mesh, accumulate)
    assert max(np.abs(x).max() for x in jax.tree.leaves(wanted)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, wanted)
    assert other == pytest.approx(row, rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_without_weight_moves_nothing(accumulate, x64):
    batch, _ = packed()
    slope, metrics, *_ = one_step({**batch, "weights": 0 * batch["weights"]}, (1, 1, 1), accumulate)
    assert metrics["grad_norm"] == metrics["loss"] == metrics["auxiliary_loss"] == 0
    assert not any(x.any() for x in jax.tree.leaves(slope))


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match="predict_ahead=-1"):
        build_model({**MODEL, "predict_ahead": -1}, T)
