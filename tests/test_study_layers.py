"""A trained hybrid under other schemes: which layers change, what its rows say, what is refused."""

import json

import jax
import numpy as np
import pytest

import lcx
from lcx import lanes
from lcx.cli import main
from lcx.config import apply, base_config, load, parse_override, run_id, validate
from lcx.errors import ConfigError
from lcx.model import build_model
from lcx.study import evaluate, records
from lcx.study.preflight import check, with_data
from lcx.study.restore import Run, open_run
from lcx.study.run import evaluate_member, run_member
from lcx.study.under import under

POSITION = "experiment.model.position"
PATTERN = [dict(position="rope", mixer=dict(name="attention", num_heads=2)),
           dict(position="no_pe", mixer=dict(name="attention", num_heads=2, window=8))]
YARN = dict(name="yarn", factor=8.0)


def tiny(folder, **changes):
    (folder / "texts").mkdir(exist_ok=True)
    for n in range(10):
        text = f"the number {n} is not the number {n + 1}. " * 8
        (folder / "texts" / f"{n}.txt").write_text(text)
    return validate(apply(base_config(), {
        "experiment.model.width": 16, "experiment.model.depth": 2,
        "experiment.model.mlp": None, "experiment.model.pattern": PATTERN,
        "experiment.data.corpus": dict(name="files", paths=str(folder / "texts")),
        "experiment.data.train_length": 16, "experiment.data.batch_size": 8,
        "experiment.data.validation": 0.5, "experiment.train.steps": 20,
        "experiment.train.optimizer.learning_rate": 0.02, "experiment.eval.max_factor": 2,
        "experiment.eval.targets": 16, "experiment.eval.resamples": 50,
        "runtime.out": str(folder / "runs"), "runtime.data_cache": str(folder / "cache"),
        "runtime.mesh.data": 1, "runtime.compile_cache": "", "runtime.name": "tiny", **changes}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A hybrid of RoPE and NoPE, tested at its end under YaRN, and under what it has anyway."""
    root = tmp_path_factory.mktemp("hybrid")
    run_member(tiny(root, **{"experiment.eval.overrides": [
        {POSITION: {"replaces": "rope", "by": YARN}},
        {"experiment.model.pattern.1.position": "no_pe"}]}), root / "run")
    return root / "run"


def bpb(rows, length=32):
    return {row["config_hash"]: row for row in rows if row["metric"] == "bpb"
            and row["method"] == "same_target" and row["length"] == length}


def test_the_rows_of_a_replaced_scheme_are_those_of_its_model(trained):
    rows = records.read(trained)
    own, other = bpb(rows).values()  # not three: what changes nothing is no arm
    assert own["config_hash"] == own["run"] == run_id(load(str(trained / "config.json")))
    assert (own["position"], other["position"]) == ("rope/no_pe", "yarn(factor=8.0)/no_pe")
    assert other["extra"]["label"] == "over rope/no_pe" and own["value"] != other["value"]
    assert "initialised" not in other["extra"] and "dropped" not in other["extra"]
    # However the layers are named, it is one experiment with one value.
    for say in ("position=yarn,factor=8,replaces=rope", "pattern.0.position=yarn,factor=8"):
        again = bpb(evaluate_member(trained, schemes=[say]))
        assert again.keys() == {other["config_hash"]}
        assert again[other["config_hash"]]["value"] == other["value"]


def test_a_loaded_model_computes_what_its_layers_say(trained):
    """Twin: the run's parameters in a model built by hand."""
    run, text = lcx.load(trained), "the number 7 is not the number 8, and so on: 9."
    ids = run.encode(text)
    for override, layers in (({}, PATTERN),
                             ({POSITION: {"replaces": "rope", "by": YARN}},
                              [{**PATTERN[0], "position": YARN}, PATTERN[1]]),
                             ({"experiment.model.pattern.1.position": "alibi"},
                              [PATTERN[0], {**PATTERN[1], "position": "alibi"}])):
        model = build_model(dict(vocab_size=256, width=16, depth=2, mlp=None, pattern=layers,
                                 position="rope", mixer="attention"), 16)
        seq = lanes.sequence(1, len(ids) - 1)
        fresh = jax.jit(model.init)(jax.random.key(0), ids[None, :-1], seq)
        nll, _ = jax.jit(lambda v, m=model, s=seq: m.apply(
            v, ids[None, :-1], ids[None, 1:], s, method="score"))(
                {**fresh, "params": run.variables["params"]})
        np.testing.assert_allclose(lcx.load(trained, override).losses(text), nll[0], rtol=1e-5)


def test_what_reaches_no_layer_writes_no_row(trained, capsys):
    before = (trained / "rows.jsonl").read_text()
    folder = str(trained)
    for command in (["eval", folder, "--override", "position=yarn,factor=4"],
                    ["eval", folder, f"--config.{POSITION}=yarn"],
                    ["eval", folder, "--override", "mixer=retention"],
                    ["generate", folder, "--prompt", "the", "--override", "position=yarn"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "layer 0 uses" in said and "replaces=" in said, said
    for command, key in ((["--override", "remat=full"], "experiment.model.remat"),
                         (["--override", "predict_ahead=1"], "experiment.model.predict_ahead"),
                         (["--override", "every=3"], "experiment.eval.every"),
                         (["--config.experiment.train.steps=3"], "experiment.train.steps"),
                         (["--config.experiment.seed=3"], "experiment.seed")):
        assert main(["eval", folder, *command]) == 2
        assert f"cannot set '{key}'" in capsys.readouterr().err
    assert main(["generate", folder, "--prompt", "the", "--override", "targets=3"]) == 2
    assert "cannot set 'experiment.eval.targets'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="layer 0 uses rope; layer 1 uses no_pe"):
        lcx.load(trained, {POSITION: "yarn"})
    with pytest.raises(ConfigError, match="cannot set 'experiment.train.steps'"):
        lcx.load(trained, {"experiment.train.steps": 9})
    config = load(f"{folder}/config.json")
    for bad in ({POSITION: YARN}, {"experiment.model.remat": "full"},
                {"experiment.data.validation": 0.2}):
        with pytest.raises(ConfigError, match="layer 0 uses rope|cannot set"):
            check(apply(config, {"experiment.eval.overrides": [bad]}))
    assert (trained / "rows.jsonl").read_text() == before


def test_an_override_that_changes_nothing_gives_the_runs_own_rows(trained, capsys):
    own = bpb(records.read(trained))[run_id(load(str(trained / "config.json")))]
    assert main(["eval", str(trained), "--override", "pattern.0.position=rope,base=10000",
                 "--json"]) == 0
    (row,) = bpb(map(json.loads, capsys.readouterr().out.splitlines())).values()
    assert {**row, "flops_per_token": 0} == {**own, "flops_per_token": 0}
    assert "changes nothing" in (trained / "log.txt").read_text()


def test_both_layers_change_in_generation(trained, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("lcx.study.generation.generate",
                        lambda run, *a, **k: seen.append(run) or ())
    assert main(["generate", str(trained), "--prompt", "the", "--override",
                 "position=yarn,factor=8,replaces=rope", "--override",
                 "position=alibi,replaces=no_pe"]) == 0
    assert [layer["position"]["name"] for layer in seen[0].model.layers] == ["yarn", "alibi"]


CHANGED = dict(split="test", documents=2, max_factor=1, targets=8, seed=3, resamples=40,
               batch_tokens=64, chunk=4, shuffled_prefix=True, overrides=[{POSITION: YARN}],
               every=3)


@pytest.mark.parametrize("kind", ["text", "task"])
def test_every_key_of_the_evaluation_reaches_the_ladder_or_raises(kind, tmp_path, monkeypatch):
    """What the ladder is called with; a new key is to be added to CHANGED."""
    task = {} if kind == "text" else {"experiment.data.task": dict(name="copy", vocab_size=16),
                                      "experiment.data.corpus": "stdlib",
                                      "experiment.data.validation": 0.1}
    config = tiny(tmp_path, **task)
    assert CHANGED.keys() == set(config.experiment.eval)
    calls = []

    def measure(model, variables, given, **options):
        options.pop("unigram", None)
        rows = ([d.name for d in given] if kind == "text"
                else jax.tree.map(lambda a: a.tolist(), vars(given(16))))
        calls.append((rows, {**options, "fairness": None}))
        return iter(())

    monkeypatch.setattr(evaluate, "ladder", measure)
    monkeypatch.setattr(evaluate, "exact_match", measure)
    full, data = with_data(config)

    def called(config):
        run = Run(tmp_path, config, lambda: data, None, build_model(full.experiment.model, 16),
                  None, 0)
        list(evaluate.rows_of(data, run, {}))
        return calls[-1]

    before, raised = called(config), set()
    for key, value in CHANGED.items():
        try:
            way = under(config, [(f"experiment.eval.{key}", value)])
            check(way)
        except ConfigError:
            raised.add(key)
            continue
        assert called(way) != before, key
    assert raised == {"overrides", "every"} | (set() if kind == "text" else {
        "documents", "shuffled_prefix"})


def test_where_it_runs_may_be_said_at_a_test(trained, monkeypatch):
    seen = []
    monkeypatch.setattr("lcx.study.evaluate.rows_of", lambda data, run, facts: seen.append(
        run.config) or iter(()))
    before = (trained / "rows.jsonl").read_text()
    try:
        evaluate_member(trained, ["runtime.backend=reference"])
    finally:
        (trained / "rows.jsonl").write_text(before)
    assert {config.runtime.backend for config in seen} == {"reference"} and len(seen) == 2
    assert open_run(trained).config.runtime.backend == "auto"
    assert parse_override("runtime.backend=reference") == ("runtime.backend", "reference")
