"""Training steps: the loss, accumulation, clipping, decay, schedules; sharded equals single."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from lcx import lookup, sharding
from lcx.errors import ConfigError, DataError
from lcx.train import build_program, sequence_of
from lcx.train.manifest import flat
from tests.train_stand_in import Batches, StandIn, config

SGD = dict(name="sgd", learning_rate=0.3)
FLAT = dict(name="constant")


def run(steps=5, mesh=(1, 1, 1), model=None, **changes):
    """Losses and the final state of a few steps on a mesh."""
    c = config(**changes)
    mesh = sharding.make_mesh(*mesh)
    with jax.set_mesh(mesh):
        program = build_program(c, model or StandIn(), mesh)
        state, constants, data = program.init(), program.constants(), Batches(c)
        rows = []
        for _ in range(steps):
            state, metrics = program.step(state, constants, program.place(next(data)))
            rows.append({k: float(v) for k, v in metrics.items()})
        return rows, jax.device_get(state), program


@pytest.fixture(scope="module")
def single():
    return run(optimizer=SGD, schedule=FLAT)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)])
def test_sharded_equals_single(single, mesh):
    rows, _, program = run(mesh=mesh, optimizer=SGD, schedule=FLAT)
    for one, many in zip(single[0], rows):
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    data, fsdp, tensor = mesh
    params = program.abstract.params
    pieces = params["query"].sharding.shard_shape(params["query"].shape)
    assert pieces == (16 // fsdp, 8 // tensor, 4)
    kv = 2 if 2 % tensor else 2 // tensor
    assert params["key"].sharding.shard_shape(params["key"].shape) == (16 // fsdp, kv, 4)
    assert params["embedding"].sharding.spec == P("tensor", "fsdp")


def test_state_is_born_and_stays_where_the_rules_say():
    c = config()
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        program = build_program(c, StandIn(), mesh)
        state, constants = program.init(), program.constants()
        after, _ = program.step(program.init(), constants, program.place(next(Batches(c))))
    for where in (state, after):
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim) or
                     pytest.fail(f"{x.sharding} is not {s.sharding}"), where, program.abstract)
    moments = {n: x.sharding.spec for n, x in flat(after.opt_state).items() if "query" in n}
    assert len(moments) == 2 and set(moments.values()) == {P("fsdp", "tensor", None)}


def test_init_does_not_depend_on_the_mesh():
    states = []
    for sizes in [(1, 1, 1), (2, 2, 2)]:
        mesh = sharding.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            states.append(jax.device_get(build_program(config(), StandIn(), mesh).init()))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_loss_is_the_weighted_mean_of_an_independent_reference():
    rows, _, program = run(steps=1)
    batch = next(Batches(config()))
    state, constants = program.init(), program.constants()
    nll, _ = program.model.apply({"params": state.params, **constants.variables}, batch["inputs"],
                                 batch["targets"], sequence_of(batch), method="score",
                                 rngs={"position": jax.random.key(0)})
    want = np.average(np.asarray(nll, np.float64), weights=batch["weights"])
    assert rows[0]["loss"] == pytest.approx(want, rel=1e-6)
    assert rows[0]["tokens"] == (batch["weights"] > 0).sum()


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1)])
def test_accumulation_is_exact_with_unequal_weights(mesh):
    weights = np.random.default_rng(0).random((16, 8), np.float32) ** 4
    weights[::2] = 0  # whole rows without weight: the micro-batches differ as much as they can
    results = []
    for accumulate in (1, 4):
        c = config(optimizer=SGD, schedule=FLAT, accumulate=accumulate, rows=16, clip=0.0)
        mesh_ = sharding.make_mesh(*mesh)
        with jax.set_mesh(mesh_):
            program = build_program(c, StandIn(), mesh_)
            batch = {**next(Batches(c)), "weights": weights}
            state, metrics = program.step(program.init(), program.constants(),
                                          program.place(batch))
            results.append((jax.device_get(state.params), jax.device_get(metrics)))
    (one, row), (many, other) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, many)
    for name in row:
        assert other[name] == pytest.approx(row[name], rel=1e-5), name


def test_a_batch_without_weight_gives_loss_zero_and_moves_nothing():
    c = config(optimizer=SGD, schedule=FLAT)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        program = build_program(c, StandIn(), mesh)
        batch = next(Batches(c))
        batch["weights"] = np.zeros_like(batch["weights"])
        state, metrics = program.step(program.init(), program.constants(), program.place(batch))
        assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["tokens"] == 0
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params),
                     jax.device_get(program.init().params))


def test_clipping_bounds_the_step_and_reports_the_norm_before_it():
    free, start, _ = run(steps=0, optimizer=SGD, schedule=FLAT)
    rows, after, _ = run(steps=1, optimizer=SGD, schedule=FLAT, clip=1e-3)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in
                        zip(flat(after.params).values(), flat(start.params).values())))
    assert rows[0]["grad_norm"] > 1e-2
    assert moved == pytest.approx(0.3 * 1e-3, rel=1e-2)


def test_adamw_is_optax_adamw():
    c = config(optimizer=dict(name="adamw", learning_rate=0.01, weight_decay=0.2),
               schedule=dict(name="warmup_cosine", warmup=0.5), clip=0.0, steps=6)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        program = build_program(c, StandIn(), mesh)
        state, constants, data = program.init(), program.constants(), Batches(c)
        factor = lookup.build("lcx.train.schedules", c.experiment.train.schedule)
        mask = {"embedding": False, "query": True, "key": True, "out": True, "gain": False,
                "slope": False}
        reference = optax.adamw(lambda n: 0.01 * factor(n, 6), b2=0.95, weight_decay=0.2,
                                mask=mask)
        params = jax.device_get(state.params)
        memory = reference.init(params)
        for step in range(3):
            batch = next(data)
            key = jax.random.fold_in(constants.key, step)

            def loss(params, batch=batch, key=key):
                nll, _ = program.model.apply(
                    {"params": params, **constants.variables}, batch["inputs"],
                    batch["targets"], sequence_of(batch), method="score", rngs={"position": key})
                return (nll * batch["weights"]).sum() / batch["weights"].sum()

            updates, memory = reference.update(jax.grad(loss)(params), memory, params)
            params = optax.apply_updates(params, updates)
            state, _ = program.step(state, constants, program.place(batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 jax.device_get(state.params), params)


def values(name, steps=100, **options):
    schedule = lookup.build("lcx.train.schedules", dict(name=name, **options))
    return np.array([float(schedule(jnp.int32(s), jnp.float32(steps))) for s in range(steps)])


def test_schedules():
    cosine = values("warmup_cosine", warmup=0.1, final=0.1)
    assert cosine[0] == pytest.approx(0.1, rel=1e-2) and cosine[9] == pytest.approx(1.0, rel=1e-2)
    assert cosine[-1] == pytest.approx(0.1, rel=1e-5)
    assert cosine[54] == pytest.approx(0.55, abs=1e-3)  # half way down
    assert (np.diff(cosine[10:]) < 0).all()
    wsd = values("wsd", warmup=0.1, decay=0.2, final=0.0)
    assert (wsd[9:80] == 1.0).all() and wsd[-1] == 0.0
    assert wsd[84] == pytest.approx(0.5)  # 1 - sqrt(1/4)
    assert (values("constant") == 1.0).all()


def test_position_draws_change_with_the_step_and_the_seed_and_with_nothing_else():
    noise = lambda **c: [r["loss"] for r in run(3, model=StandIn(noise=1.0), **c,
                                                optimizer=dict(name="sgd", learning_rate=0.0))[0]]
    c = config(repeat=True)
    assert noise(repeat=True) == noise(repeat=True)
    assert len(set(noise(repeat=True))) == 3, c
    assert noise(repeat=True, seed=1)[0] != noise(repeat=True)[0]


def test_members_that_differ_in_numbers_only_share_one_program():
    texts = set()
    for changes in [dict(), dict(seed=5, steps=77, optimizer=dict(name="adamw", learning_rate=.5))]:
        c = config(**changes)
        mesh = sharding.make_mesh(1, 1, 1)
        with jax.set_mesh(mesh):
            program = build_program(c, StandIn(), mesh)
            batch = program.place(next(Batches(c)))
            texts.add(program.step.lower(program.abstract, program.constants(), batch).as_text())
    assert len(texts) == 1


def test_ids_that_merely_count_are_shared_and_others_are_kept(single):
    batch = next(Batches(config()))
    shape = batch["inputs"].shape
    ids = np.broadcast_to(np.arange(shape[1], dtype=np.float32)[:, None], (*shape, 1)).copy()
    shared = single[2].place({**batch, "ids": ids})
    assert "ids" not in shared
    np.testing.assert_array_equal(sequence_of(shared).ids[0], ids[0])
    moved = ids.copy()
    moved[3, 5] += 1
    np.testing.assert_array_equal(
        sequence_of(single[2].place({**batch, "ids": moved})).ids, moved)
    padding = {**batch, "document": batch["document"].copy(), "ids": moved}
    padding["document"][3, 5:] = -1
    assert "ids" not in single[2].place(padding)
    segment = {**batch, "ids": ids, "segment": np.ones(shape, np.int32)}
    assert {"ids", "segment"} <= set(single[2].place(segment))


@pytest.mark.parametrize("mesh, changes, match", [
    ((8, 1, 1), dict(rows=12), "batch_size=12 must be a multiple of 8"),
    ((2, 1, 1), dict(accumulate=3), "multiple of 6"),
    ((1, 1, 1), dict(optimizer=dict(name="adamv")), "did you mean 'adamw'"),
    ((1, 1, 1), dict(schedule=dict(name="wsd", decoy=0.1)), "did you mean 'decay'"),
])
def test_bad_config_raises_before_anything_compiles(mesh, changes, match):
    mesh = sharding.make_mesh(*mesh)
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match=match):
        build_program(config(**changes), StandIn(), mesh)


def test_heads_that_do_not_divide_raise_before_anything_compiles():
    mesh = sharding.make_mesh(1, 1, 8)
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match="does not divide 6 heads"):
        build_program(config(), StandIn(heads=6), mesh)


def test_a_token_outside_the_vocabulary_raises_on_the_host(single):
    batch = next(Batches(config()))
    batch["targets"][1, 2] = 32
    with pytest.raises(DataError, match="token 32.*0..31"):
        single[2].place(batch)
