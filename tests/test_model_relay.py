"""What layers hand to later ones of their kind: RWKV-7's values, up the depth of a whole model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lcx import lanes as L
from lcx import sharding
from lcx.model import build_model
from lcx.study.capture import capture
from lcx.train import build_program
from tests.train_stand_in import LENGTH, VOCAB, Batches, config

T, V, D = 12, 11, 16
RWKV = dict(name="rwkv7", num_heads=2, ranks=(3, 4, 5, 6))
OTHER = {**RWKV, "num_heads": 4}  # of the same kind, by other heads
PATTERN = [dict(mixer=RWKV), dict(mixer=dict(name="attention", num_heads=2)), dict(mixer=OTHER)]
SEGMENT = np.array([[1] * 5 + [2] * 7])


def model_of(depth=6, pattern=PATTERN):
    return build_model(dict(vocab_size=V, width=D, depth=depth, pattern=pattern, mlp=None,
                            mixer="attention", position="no_pe", dtype="float64"), T)


def tokens(seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (2, T)))


def drawn(model, share=None):
    """Random variables; share: the bias of every blend."""
    shapes = jax.eval_shape(
        lambda: nn.unbox(model.init(jax.random.key(0), tokens(), L.sequence(1, T))))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if share is not None and path[-1].key == "share_bias":
            return jnp.full(leaf.shape, share)
        return jnp.asarray(0.4 * rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def values(model, found):
    """What the cores of the RWKV-7 layers read, first layer first, [B,T,D] each."""
    layers = capture(model, found, tokens(), "inner")
    kept = [layer["inner"]["value"] for n, layer in enumerate(layers) if n % 3 != 1]
    return [np.asarray(value).reshape(2, T, D) for value in kept]


def test_later_layers_read_the_values_of_the_first_as_their_gates_say(x64):
    model = model_of()
    first, *rest = values(model, drawn(model, share=60.0))
    for later in rest:
        np.testing.assert_allclose(later, first, rtol=0, atol=1e-12)
    found = drawn(model, share=-60.0)
    np.testing.assert_array_equal(values(model, found)[0], first)  # no gate reaches the first
    assert np.abs(first).max() > 0.1
    alone = model_of(pattern=[{"mixer": {**one["mixer"], **more}} for one, more in zip(
        PATTERN, [dict(value_residual=False), {}, dict(value_residual=False)])])
    bare = jax.eval_shape(lambda: nn.unbox(
        alone.init(jax.random.key(0), tokens(), L.sequence(1, T))))
    paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(bare)}
    shared = {path for path, _ in jax.tree_util.tree_leaves_with_path(found)} - paths
    assert len(shared) == 2 * 3 and all("share" in jax.tree_util.keystr(p) for p in shared)
    seq = L.sequence(1, T)
    np.testing.assert_allclose(jax.jit(model.apply)(found, tokens(), seq)[0],
                               jax.jit(alone.apply)(found, tokens(), seq)[0], atol=1e-12)
    mixed = values(model, drawn(model))
    assert np.abs(mixed[1] - mixed[0]).max() > 0.1


def test_a_lone_layer_hands_on_nothing(x64):
    model = model_of(depth=1, pattern=[dict(mixer=RWKV)])
    assert "share" not in str(jax.tree_util.tree_structure(drawn(model)))


def test_pieces_and_documents_give_what_the_whole_row_gives(x64):
    model, seq = model_of(), L.sequence(1, T, segment=SEGMENT)
    found, apply, text = drawn(model), jax.jit(model.apply), tokens()
    whole = apply(found, text, seq)[0]
    state, pieces = model.init_state(2, T), []
    for a, b in ((0, 4), (4, 5), (5, 12)):
        y, state = apply(found, text[:, a:b], seq[a:b], state)
        pieces.append(y)
    alone = [apply(found, text[:, a:b], L.sequence(1, b - a, told_length=T))[0]
             for a, b in ((0, 5), (5, 12))]
    for parts in (pieces, alone):
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-10)


@pytest.mark.full
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)], ids=str)
def test_training_on_a_mesh_is_training_on_one_device(mesh):
    """With layers computed again on the way back; every leaf learns but the first layer's share.

    The projections out of the mixers start at zero, so all start at random here.
    """
    rng = np.random.default_rng(3)
    draw = lambda a: np.asarray(a + 0.2 * rng.normal(size=a.shape), a.dtype)
    moved = lambda state, numbers: (state.replace(params=jax.tree.map(draw, state.params)), numbers)
    settings = config(optimizer=dict(name="sgd", learning_rate=0.1),
                      schedule=dict(name="constant"))
    settings.experiment.model = ConfigDict(
        dict(vocab_size=VOCAB, width=32, depth=2, mixer={**RWKV, "num_heads": 4}, mlp="gated",
             position="no_pe", remat="full"), convert_dict=False)
    found, start = [], None
    for sizes in ((1, 1, 1), mesh):
        on = sharding.make_mesh(*sizes)
        with jax.set_mesh(on):
            program = build_program(settings, build_model(settings.experiment.model, LENGTH), on)
            start = start or moved(*jax.device_get((program.init(), program.constants())))
            state = jax.device_put(start[0], jax.tree.map(lambda x: x.sharding, program.abstract))
            constants, losses = jax.device_put(start[1], sharding.replicated(on)), []
            data = Batches(settings)
            for _ in range(4):
                state, metrics = program.step(state, constants, program.place(next(data)))
                losses.append(float(metrics["loss"]))
            found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5) and len(set(found[0])) == 4
    before, after = (jax.tree_util.tree_leaves_with_path(jax.device_get(s.params))
                     for s in (start[0], state))
    for (path, old), (_, new) in zip(before, after):
        where = jax.tree_util.keystr(path)
        if "layers" in where:
            assert (old[1] != new[1]).any(), where
            assert ("share" in where) == (old[0] == new[0]).all(), where
