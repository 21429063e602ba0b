"""Mixture of experts: a loop over dense experts, the balance loss, a mesh, and a training run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lcx import lanes as L
from lcx import sharding
from lcx.errors import ConfigError
from lcx.model import build_model, mlps
from lcx.model.mlps.moe import Moe
from lcx.train import build_program
from tests.train_stand_in import LENGTH, VOCAB, Batches, config

B, T, D = 4, 6, 8
OPTIONS = [dict(num_experts=4, top_k=2), dict(num_experts=4, top_k=1, normalise=False),
           dict(num_experts=6, top_k=3, num_shared=2, hidden=3)]


def started(options, seed=0):
    """The layer, moved parameters and an input, in the dtype of the run."""
    moe, x = Moe(D, **options), jax.random.normal(jax.random.key(seed), (B, T, D))
    shapes = jax.eval_shape(lambda: nn.unbox(moe.init(jax.random.key(0), x)))
    assert set(shapes) == {"params"}  # nothing of what is sown stays among the variables
    rng = np.random.default_rng(1)
    return moe, jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape)), shapes), x


def dense(moe, params, x):
    """Every expert on every token, weighted by the router or by zero."""
    probability = jax.nn.softmax(x @ params["router"]["kernel"])
    gate, choice = jax.lax.top_k(probability, moe.top_k)
    if moe.normalise:
        gate = gate / gate.sum(-1, keepdims=True)

    def gated(into, out_of):  # [D,2,F], [F,D]
        up = jnp.einsum("btd,dgf->gbtf", x, into)
        return (jax.nn.silu(up[0]) * up[1]) @ out_of

    y = 0.0
    for e in range(moe.num_experts):
        share = jnp.sum(jnp.where(choice == e, gate, 0.0), -1, keepdims=True)
        y = y + share * gated(params["experts_in"][e], params["experts_out"][e])
    if moe.num_shared:
        shared = params["shared"]
        y = y + gated(shared["gate_in"]["kernel"], shared["out"]["kernel"])
    return y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_loop_over_dense_experts(options, x64):
    moe, found, x = started(options)
    weigh = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
    ours = lambda params, x: jnp.sum(weigh * moe.apply({"params": params}, x))
    loop = lambda params, x: jnp.sum(weigh * dense(moe, params, x))
    y = jax.jit(moe.apply)(found, x)
    np.testing.assert_allclose(y, dense(moe, found["params"], x), atol=1e-12)
    got = jax.jit(jax.grad(ours, (0, 1)))(found["params"], x)
    wanted = jax.jit(jax.grad(loop, (0, 1)))(found["params"], x)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=1e-11, err_msg=jax.tree_util.keystr(path))
        # of one unnormalised pick too, the router learns
        assert np.abs(b).max() > 1e-3, jax.tree_util.keystr(path)


def test_no_token_is_dropped_when_all_pick_one_expert(x64):
    moe, found, x = started(OPTIONS[1])
    found["params"]["router"]["kernel"] = jnp.zeros((D, 4)).at[:, 2].set(40.0)
    x = jnp.abs(x)
    y, told = moe.apply(found, x, mutable=["intermediates", "losses"])
    np.testing.assert_allclose(y, dense(moe, found["params"], x), atol=1e-12)
    np.testing.assert_allclose(told["intermediates"]["expert_load"][0], [0, 0, 1, 0])
    np.testing.assert_allclose(told["losses"]["balance"][0], 0.01 * 4)  # the worst: num_experts


def test_the_balance_loss_is_1_at_balance_and_pushes_towards_it(x64):
    moe, found, x = started(dict(num_experts=4, top_k=2, balance=1.0))
    value = lambda p, x: moe.apply({"params": p}, x, mutable=["losses"])[1]["losses"]["balance"][0]
    params = found["params"]
    even = dict(params, router=dict(kernel=jnp.zeros((D, 4))))
    np.testing.assert_allclose(value(even, x), 1.0)
    probability = jax.nn.softmax(x @ params["router"]["kernel"])
    _, choice = jax.lax.top_k(probability, 2)
    load = np.bincount(np.ravel(choice), minlength=4) / choice.size
    wanted = 4 * (load * np.asarray(probability).reshape(-1, 4).mean(0)).sum()
    np.testing.assert_allclose(value(params, x), wanted, rtol=1e-12)
    grad = jax.grad(value)(params, x)["router"]["kernel"]
    moved = dict(params, router=dict(kernel=params["router"]["kernel"] - 0.01 * grad))
    assert value(moved, x) < value(params, x)


def test_padding_counts_nothing(x64):
    """Neither in the load nor in the loss, nor in its gradient; it is routed all the same."""
    moe, found, x = started(dict(num_experts=4, top_k=2, balance=1.0))
    segment = np.array([[1, 1, 2, 2, 0, 0]] * B)

    class Told(nn.Module):
        @nn.compact
        def __call__(self, x, seq):
            return mlps.run(Moe(D, **OPTIONS[0], balance=1.0, name="moe"), x, seq, None)[0]

    def told(x, seq):
        def run(params):
            y, told = Told().apply({"params": {"moe": params}}, x, seq,
                                   mutable=["intermediates", "losses"])
            return told["losses"]["moe"]["balance"][0], (told["intermediates"]["moe"], y)

        (loss, (seen, y)), slope = jax.value_and_grad(run, has_aux=True)(found["params"])
        return loss, seen["expert_load"][0], slope["router"]["kernel"], y

    *wanted, own = told(x[:, :4], L.sequence(1, 4))
    for noise in (0.0, 100.0):
        padded = x.at[:, 4:].add(noise)
        *got, y = told(padded, L.sequence(B, T, segment=segment))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, wanted)
        np.testing.assert_allclose(y[:, :4], own, atol=1e-12)
    loss, load, slope, _ = told(x, L.sequence(B, T, segment=0 * segment))
    assert loss == 0 and not load.any() and not slope.any()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8), (2, 1, 4)], ids=str)
def test_experts_over_a_mesh_are_the_experts_of_one_device(sizes, x64):
    moe, found, x = started(dict(num_experts=8, top_k=3, num_shared=1))
    boxed = jax.eval_shape(lambda: moe.init(jax.random.key(0), x))
    weigh = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))

    def run(params, x):
        def total(params, x):
            y, told = moe.apply({"params": params}, x, mutable=["losses"])
            return jnp.sum(weigh * y) + told["losses"]["balance"][0], y
        return jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)

    wanted = jax.jit(run)(found["params"], x)
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        at = sharding.shardings(boxed["params"], mesh)
        params = jax.device_put(found["params"], at)
        place = params["experts_in"].sharding
        assert place.shard_shape((8, D, 2, 8))[0] == 8 // sizes[2]
        got = jax.jit(run)(params, jax.device_put(x, sharding.batch_sharding(mesh))
                           if B % sharding.batch_ways(mesh) == 0 else x)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=1e-11, err_msg=jax.tree_util.keystr(path))


def test_experts_that_do_not_divide_stay_whole():
    moe, found, x = started(dict(num_experts=6))
    wanted = jax.jit(moe.apply)(found, x)
    with jax.set_mesh(sharding.make_mesh(2, 1, 4)):
        np.testing.assert_allclose(jax.jit(moe.apply)(found, x), wanted, atol=1e-5)


def small(mesh=(1, 1, 1), accumulate=1, **mlp):
    c = config(optimizer=dict(name="sgd", learning_rate=0.1), schedule=dict(name="constant"),
               mesh=mesh, accumulate=accumulate)
    c.experiment.model = ConfigDict(dict(
        vocab_size=VOCAB, width=16, depth=2, mixer=dict(name="linear_attention", num_heads=2),
        position=dict(name="no_pe"), mlp=mlp, tie_embeddings=True), convert_dict=False)
    return c


def steps(c, count=3):
    mesh = sharding.make_mesh(**c.runtime.mesh)
    with jax.set_mesh(mesh):
        program = build_program(c, build_model(c.experiment.model, LENGTH), mesh)
        state, constants, data = program.init(), program.constants(), Batches(c)
        rows = []
        for _ in range(count):
            state, metrics = program.step(state, constants, program.place(next(data)))
            rows.append({name: float(x) for name, x in metrics.items()})
    return rows, jax.device_get(state.params)


def test_a_training_step_adds_the_balance_of_all_layers_and_reports_it():
    moe = dict(name="moe", num_experts=4)
    (row, *_), params = steps(small(**moe, balance=1.0), 1)
    assert 2.0 <= row["auxiliary_loss"] < 4.0  # two layers, 1 each at best
    (bare, *_), without = steps(small(**moe, balance=0.0), 1)
    assert bare["loss"] == row["loss"] and "auxiliary_loss" not in bare
    router = lambda p: p["layers"]["layer_0"]["mlp"]["router"]["kernel"]
    assert np.abs(router(params) - router(without)).max() > 1e-6


def test_sharded_training_is_training_on_one_device():
    moe = dict(name="moe", num_experts=4, num_shared=1)
    wanted, _ = steps(small(**moe))
    found, _ = steps(small((2, 2, 2), **moe))
    for a, b in zip(found, wanted):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["auxiliary_loss"] == pytest.approx(b["auxiliary_loss"], rel=1e-5)


def test_micro_batches_give_the_mean_of_their_balance():
    moe = dict(name="moe", num_experts=4, balance=0.5)
    found, _ = steps(small(accumulate=2, **moe), 1)
    wanted, _ = steps(small(**moe), 1)
    assert found[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-5)
    assert found[0]["auxiliary_loss"] == pytest.approx(wanted[0]["auxiliary_loss"], rel=0.2)


def test_a_token_cannot_pass_more_experts_than_there_are():
    with pytest.raises(ConfigError, match="top_k=3 must be from 1 to num_experts=2"):
        Moe(D, num_experts=2, top_k=3).init(jax.random.key(0), jnp.zeros((1, 1, D)))
