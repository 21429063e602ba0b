"""The hybrids of configs/hybrids.py: ratios of their papers, and that each takes a step."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lookup, sharding
from lcx.cli import main
from lcx.config import apply, load, validate
from lcx.model import build_model
from lcx.train.program import build_program
from tests.test_model_decode import greedy_agrees, model_of

PATH = Path(__file__).parent.parent / "configs" / "hybrids.py"
SPEC = importlib.util.spec_from_file_location("hybrids", PATH)
hybrids = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hybrids)
NAMES = list(hybrids.HYBRIDS)


def mixers(pattern):
    return [mixer if isinstance(mixer, str) else mixer["name"]
            for mixer in (layer["mixer"] for layer in pattern)]


@pytest.mark.parametrize("name, wanted", [
    ("griffin", "RRA"), ("jamba", "MMMMAMMM"), ("samba", "MA"), ("kimi_linear", "KKKL"),
    ("qwen3_next", "GGGA"), ("nemotron_h", "22222A")])
def test_the_order_of_the_paper(name, wanted):
    letters = dict(rglru="R", attention="A", mamba1="M", kda="K", mla="L", gated_delta_net="G",
                   mamba2="2")
    assert "".join(letters[m] for m in mixers(hybrids.HYBRIDS[name](64))) == wanted


def one_of_each(name):
    """A layer of each kind of a hybrid, with two heads."""
    pattern = hybrids.HYBRIDS[name](16)
    small = []
    for one in (pattern[mixers(pattern).index(kind)] for kind in dict.fromkeys(mixers(pattern))):
        spec = dict(name=one["mixer"]) if isinstance(one["mixer"], str) else dict(one["mixer"])
        if "num_heads" in lookup.fields(lookup.find("lcx.mixers", spec["name"])):
            spec["num_heads"] = 2
        small.append({**one, "mixer": spec})
    return small


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_a_hybrid_generates_the_argmax_of_its_whole_pass(name):
    small = one_of_each(name)
    greedy_agrees(model_of(pattern=small, depth=2 * len(small)))


@pytest.mark.parametrize("name", NAMES)
def test_a_hybrid_builds_and_takes_a_step(name):
    """One layer of each kind, tiny; the shipped size is built by shape."""
    full = load(f"{PATH}:{name}")
    build_model(dict(full.experiment.model.to_dict(), vocab_size=11), 128)
    small = one_of_each(name)
    config = validate(apply(full, {
        "experiment.model.pattern": small, "experiment.model.depth": len(small),
        "experiment.model.width": 16, "experiment.model.vocab_size": 11,
        "experiment.data.train_length": 16, "experiment.data.batch_size": 2,
        "runtime.mesh.data": 1}))
    mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
    tokens = np.random.default_rng(0).integers(0, 11, (2, 17)).astype(np.int32)
    with jax.set_mesh(mesh):
        program = build_program(config, build_model(config.experiment.model, 16), mesh)
        before = program.init()
        kept = jax.tree.map(np.asarray, before.params)
        after, metrics = program.step(before, program.constants(), program.place(
            dict(inputs=tokens[:, :-1], targets=tokens[:, 1:],
                 weights=np.ones((2, 16), np.float32))))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert np.isclose(metrics["loss"], np.log(11), atol=1.5)
    changed = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), kept, after.params)
    assert all(jax.tree.leaves(changed)), changed


def test_the_cache_of_a_hybrid_is_its_full_layers():
    """What a stream remembers grows with its length in the full layers alone."""
    for name in NAMES:
        config = load(f"{PATH}:{name}")
        model = build_model(dict(config.experiment.model.to_dict(), vocab_size=11), 128)
        size = lambda length, model=model: [
            sum(leaf.size for leaf in jax.tree.leaves(layer))
            for layer in jax.eval_shape(lambda: model.init_state(1, length)).layers]
        grows = "".join("-+"[a < b] for a, b in zip(size(512), size(1024)))
        assert grows == dict(griffin="---", jamba="----+---", samba="--", kimi_linear="---+",
                             qwen3_next="---+", nemotron_h="-----+")[name], name


def test_dry_run_and_sweep(capsys):
    assert main(["train", f"{PATH}:griffin", "--dry-run", "--json",
                 "--config.experiment.model.width=32", "--config.experiment.model.depth=3",
                 "--config.runtime.mesh.data=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    pattern = told["config"]["experiment"]["model"]["pattern"]
    assert told["flops_per_token"] > 0 and mixers(pattern) == ["rglru", "rglru", "attention"]
    members = list(hybrids.sweep())
    assert [m["runtime.label"] for m in members] == NAMES
    assert all(6 <= m["experiment.model.depth"] <= 9 for m in members)
    with pytest.raises(ValueError, match="choose griffin, jamba"):
        hybrids.get_config("grifin")
    assert len(PATH.read_text().splitlines()) <= 100


def test_squared_relu_is_one():
    mlp = lookup.build("lcx.model.mlps", "squared_relu", width=3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 3)), jnp.float32)
    found = mlp.init_with_output(jax.random.key(0), x)
    first, last = (np.asarray(found[1]["params"][n]["kernel"].value) for n in ("in", "out"))
    assert np.allclose(found[0], np.maximum(np.asarray(x) @ first, 0) ** 2 @ last, atol=1e-6)
