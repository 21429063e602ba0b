"""Runs whose corpus, machine or id is another by now: what opens, what is found, what rows say."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest

import lcx
from lcx import data as data_library
from lcx.cli import main
from lcx.config import apply, canonical_json, code_version, load, resolve, run_id
from lcx.config.stored import FACTS
from lcx.errors import ConfigError, DataError
from lcx.study import records
from lcx.study.caveats import warn
from lcx.study.distinct import distinguish
from lcx.study.overview import overview
from lcx.study.preflight import check, check_data
from lcx.study.run import evaluate_member, run_member
from lcx.study.run_folder import folder_of
from lcx.study.start import source_of
from lcx.study.status import read_status, write_status
from lcx.study.sweep import expand, sweep
from lcx.train.metrics import read as read_metrics
from tests.test_study_sweep import CONFIG

TEXT = "the number 3 is not the number 4. " * 8
YARN = {"experiment.model.position": {"name": "yarn", "factor": 2}}
PATHS = "experiment.data.corpus.paths"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A study: a corpus, a config file, and its first run, finished and tested under YaRN."""
    root = tmp_path_factory.mktemp("study")
    (root / "corp").mkdir()
    for n in range(10):
        (root / "corp" / f"{n}.txt").write_text(f"the number {n} is not the number {n + 1}. " * 8)
    (root / "tiny.py").write_text(CONFIG.format(text=root / "corp", out=root / "runs"))
    config = load(str(root / "tiny.py"), CHANGES)
    assert run_member(config)["state"] == "finished"
    return root


CHANGES = {"experiment.eval.overrides": [YARN], "experiment.data.batch_size": 4,
           "experiment.eval.documents": 3}


@pytest.fixture
def study(place, tmp_path):
    """A copy of the study with its config: (its folder, the run's config, the run's folder)."""
    for name in ("corp", "runs"):
        shutil.copytree(place / name, tmp_path / name)
    (tmp_path / "tiny.py").write_text(CONFIG.format(text=tmp_path / "corp", out=tmp_path / "runs"))
    config = load(str(tmp_path / "tiny.py"), CHANGES)
    folder = folder_of(config)
    assert folder.parent == tmp_path / "runs/tiny"
    assert folder.name == run_id(config) and (folder / "config.json").exists()
    edit(folder, lambda values: values["experiment"]["data"]["corpus"].update(
        paths=str(tmp_path / "corp")))
    return tmp_path, config, folder


def edit(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def measured(rows):
    """Rows without what may differ between two measurements of one thing."""
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def test_a_run_whose_corpus_has_moved(study, capsys):
    root, config, folder = study
    before = records.read(folder)
    new = root / "far" / "renamed"
    new.parent.mkdir()
    (root / "corp").rename(new)
    # What needs no corpus.
    run = lcx.load(folder)
    assert len(run.generate("the number", 4)) and run.losses(TEXT).shape == (len(TEXT) - 1,)
    assert (lcx.score(run, TEXT, [16], targets=4)["status"] == "ok").all()
    assert main(["generate", str(folder), "--prompt", "the", "--tokens", "2"]) == 0
    # What needs it says where to tell its place.
    assert main(["eval", str(folder)]) == 2
    assert f"--config.{PATHS}=" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such file or folder"):
        run.data  # noqa: B018
    # At its new place it is the same run, by an option or as a whole.
    rows = evaluate_member(folder, [f"{PATHS}={new}"])
    assert measured(rows) == measured(before) == measured(records.read(folder))
    whole = json.dumps({"name": "files", "paths": [f"{new}/"]})
    assert main(["eval", str(folder), f"--config.experiment.data.corpus={whole}"]) == 0
    assert measured(records.read(folder)) == measured(before)
    # Other text is refused where it is told to be the same, and else is another config.
    first = new / "0.txt"
    first.write_text(first.read_text().upper())
    with pytest.raises(DataError, match="not those that this run is known by .*restore them"):
        evaluate_member(folder, [f"{PATHS}={new}"])
    assert measured(records.read(folder)) == measured(before)
    evaluate_member(folder, [f"experiment.data.corpus={whole}"])
    hashes = {row["config_hash"] for row in records.read(folder)}
    assert len(hashes) == 3 and run_id(config) in hashes


def test_moved_arms_are_compared(study, tmp_path_factory):
    """A second run over a moved copy of the corpus: no word of different target tokens."""
    root, config, folder = study
    (root / "corp").rename(root / "renamed")
    other = load(str(root / "tiny.py"), {
        **CHANGES, "experiment.seed": 1, "experiment.data.corpus":
        dict(name="files", paths=str(root / "renamed"))})
    assert run_member(other)["state"] == "finished"
    rows = distinguish(records.read(root / "runs"))
    assert {row["seed"] for row in rows} == {0, 1} and len({row["run"] for row in rows}) == 2
    assert len({row["extra"].get("label", "") for row in rows if row["position"] == "rope"}) == 1
    assert not [text for text in warn(rows) if "target tokens" in text]
    text = {"experiment.data.corpus": dict(name="files", paths=str(root / "renamed"))}
    (root / "renamed" / "0.txt").write_text("something else altogether")
    assert run_id(load(str(root / "tiny.py"), {**CHANGES, **text})) != run_id(config)


@pytest.mark.parametrize(("runtime", "told"), [
    ({"mesh": {"data": 16, "fsdp": 1, "tensor": 1}}, {"mesh"}),
    ({"mesh": {"data": 1, "fsdp": 3, "tensor": 1}}, {"mesh"}),
    ({"mesh": {"data": -1, "fsdp": 1, "tensor": 1}, "backend": "cudnn",
     "data_cache": "ROOT/nowhere/cache", "compile_cache": "ROOT/nowhere/xla",
     "out": "ROOT/nowhere/runs",
     "start_folder": "ROOT/nowhere/run", "trackers": {"name": "wandb"}},
     {"backend", "data_cache", "compile_cache"}),
])
def test_a_run_of_another_machine_opens(study, runtime, told, caplog, capsys, monkeypatch):
    """Trained on 16 devices, or 3, or a GPU with folders of its own; there are eight here."""
    caplog.set_level(logging.INFO, "lcx")
    monkeypatch.setenv("LCX_DATA", str(study[0] / "runs/cache"))
    root, config, folder = study
    before = records.read(folder)
    runtime = json.loads(json.dumps(runtime).replace("ROOT", str(root)))
    edit(folder, lambda values: values["runtime"].update(runtime))
    run = lcx.load(folder)
    assert len(run.generate("the number", 3)) > 0
    assert lcx.score(run, TEXT, [16], targets=4)["bpb"].notna().all()
    assert main(["generate", str(folder), "--prompt", "the", "--tokens", "2"]) == 0
    rows = evaluate_member(folder, schemes=["position=no_pe"])
    assert all(row["value"] for row in rows if row["metric"] == "bpb")
    assert {row["run"] for row in rows} == {run_id(config)}
    assert main(["eval", str(folder)]) == 0
    after = {(r["config_hash"], r["metric"], r["method"], r["length"]): r["value"]
             for r in records.read(folder)}
    for row in before:
        key = (row["config_hash"], row["metric"], row["method"], row["length"])
        assert after[key] == pytest.approx(row["value"], abs=1e-4)
    assert {key for key in runtime if f"the run's runtime.{key}=" in caplog.text} == told
    # What is asked for now is not what was stored: it must be possible.
    for command in (["eval"], ["generate", "--prompt", "x", "--tokens", "1"]):
        asked = [command[0], str(folder), *command[1:], "--config.runtime.mesh.data=16"]
        assert main(asked) == 2
        assert "config.runtime.mesh" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="mesh"):
        lcx.load(folder, {"runtime.mesh.data": 16})


# --- folders of schema 1, as it was -------------------------------------------------------------


def old_id(config):
    """The run id of schema 1, verbatim."""
    return hashlib.sha256(canonical_json(config.experiment).encode()).hexdigest()[:10]


def aged(config, folder):
    """The folder as schema 1 would have made it: named, described and measured under old ids."""
    values = {key: value for key, value in resolve(config).items() if key not in FACTS}
    values["experiment"]["data"]["corpus"].pop("content", None)
    old = data_of(values)
    target = folder.with_name(old_id(old))
    folder.rename(target)
    (target / "config.json").write_text(
        json.dumps({**values, "code_version": code_version()[0]}, sort_keys=True) + "\n")
    lines = [json.loads(line) for line in (target / "rows.jsonl").read_text().splitlines()]
    for row in lines:
        way = old if row["config_hash"] == row["run"] else apply(
            old, {**YARN, "experiment.eval.overrides": None, "experiment.eval.every": 0})
        row.update(run=old_id(old), config_hash=old_id(way))
        row["extra"]["arm"] = old_id(apply(way, {"experiment.seed": 0}))
    (target / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return target


def data_of(values):
    from lcx.config import from_values

    return from_values(values)


def test_a_folder_of_an_old_id_is_found(study, capsys):
    root, config, folder = study
    before = {(r["config_hash"], r["metric"], r["method"], r["length"]): r["value"]
              for r in records.read(folder)}
    old = aged(config, folder)
    assert old.name != run_id(config) and folder_of(config) == old
    found = records.read(old)
    assert run_member(config) == read_status(old)  # skipped: finished
    assert not folder.exists()
    # Its files are known by content from now on, and its rows by the ids of today.
    stored = json.loads((old / "config.json").read_text())
    assert stored["experiment"]["data"]["corpus"] == config.experiment.data.corpus
    assert old.name in stored["formerly"]
    rows = records.read(old)
    assert len(rows) == len(found) == len(before)
    assert {(r["config_hash"], r["metric"], r["method"], r["length"]): r["value"]
            for r in rows} == before
    assert {row["run"] for row in rows} == {run_id(config)}
    # A sweep skips it too; its table and the report's list of members find it.
    member, = [m for m in expand(str(root / "tiny.py"), [
        "experiment.eval.overrides=" + json.dumps([YARN]), "experiment.data.batch_size=4",
        "experiment.eval.documents=3", "experiment.seed=0"])
        if m.config.experiment.model.position == {"name": "rope"}]
    told = []
    assert member.folder == old and sweep([member], say=told.append)
    assert told == [f"{member.label}: finished before, skipped"]
    assert [(r["run"], r["state"]) for r in overview(root / "runs/tiny")] == [
        (old.name, "finished")]
    assert lcx.load(old).generate("the", 2)


def test_a_half_done_folder_of_an_old_id_goes_on(study):
    root, config, folder = study
    old = aged(config, folder)
    write_status(old, "running", pid=0, code_version=code_version()[0])
    trained = read_metrics(old / "metrics.jsonl")
    longer = {"experiment.train.steps": 6}
    assert run_member(apply(config, longer))["state"] == "finished"
    assert not folder.exists() and read_metrics(old / "metrics.jsonl") == trained
    assert {row["run"] for row in records.read(old)} == {run_id(config)}
    # The text that it was trained on is looked at before its name is believed.
    aged_again = aged(config, old)
    (root / "corp" / "0.txt").write_text("other text, long enough to be a document " * 9)
    changed = load(str(root / "tiny.py"), CHANGES)
    assert folder_of(changed) == aged_again
    with pytest.raises(ConfigError, match="was trained on other text than lies at its paths now"):
        run_member(changed)


def test_old_and_new_runs_are_one_report(study):
    """A second seed of today beside an old folder: one arm, with the same ids in all rows."""
    root, config, folder = study
    old = aged(config, folder)
    run_member(config)
    second = apply(config, {"experiment.seed": 1})
    assert run_member(second)["state"] == "finished"
    rows = distinguish(records.read(root / "runs"))
    assert len({row["extra"]["arm"] for row in rows if row["position"] == "rope"}) == 1
    assert {row["run"] for row in rows} == {run_id(config), run_id(second)}
    assert not any("#" in row["extra"].get("label", "") for row in rows)
    assert old.exists()


def test_a_run_starts_from_an_old_id(study):
    root, config, folder = study
    first = apply(config, {"experiment.eval.overrides": None})
    by_folder = load(str(root / "tiny.py"), {**CHANGES, "experiment.train.start_from": str(folder)})
    old = aged(config, folder)
    starts = [load(str(root / "tiny.py"), {**CHANGES, "experiment.train.start_from": name})
              for name in (old.name, str(old))]
    assert {source_of(one) for one in starts} == {old}
    assert run_id(starts[0]) == run_id(starts[1])
    run_member(config)  # its files are known by content from now on
    again = [load(str(root / "tiny.py"), {**CHANGES, "experiment.train.start_from": name})
             for name in (old.name, str(old), starts[0].experiment.train.start_from,
                          run_id(config))]
    assert {source_of(one) for one in again} == {old}
    assert {run_id(one) for one in again} == {run_id(by_folder)}
    assert source_of(starts[0]) == old  # a stored second stage still finds it
    assert source_of(first) is None


def test_an_old_second_stage_is_found(study):
    """Its folder, and the source that its config.json names, both go by old ids."""
    root, config, folder = study
    second = {**CHANGES, "experiment.seed": 1, "experiment.eval.overrides": None,
              "experiment.train.steps": 1}
    start = lambda source: load(str(root / "tiny.py"), {
        **second, "experiment.train.start_from": str(source)})
    by_old_code = start(folder)
    assert run_member(by_old_code)["state"] == "finished"
    stage = folder_of(by_old_code)
    source = aged(config, folder)
    by_old_code.experiment.train.start_from = source.name
    stage = aged(by_old_code, stage)
    today = start(source)
    assert today.experiment.train.start_from != source.name and folder_of(today) == stage
    assert run_member(today)["state"] == "finished"
    assert {row["run"] for row in records.read(stage)} == {run_id(today)}
    # Once there is a checkpoint the source is needed no more.
    shutil.rmtree(source)
    write_status(stage, "running", pid=0, code_version=code_version()[0])
    check_data(today)
    assert run_member(today)["state"] == "finished"


def test_a_start_that_is_not_there_is_said(study):
    root = study[0]
    missing = load(str(root / "tiny.py"), {**CHANGES, "experiment.train.start_from": "0123456789"})
    with pytest.raises(ConfigError, match="no run 0123456789"):
        check_data(missing)


def test_the_state_of_an_old_checkpoint_counts_in_the_same_data(study, monkeypatch):
    """The fingerprint of schema 1, verbatim: names of folders and every option's default."""
    monkeypatch.setattr("lcx.data.batches.SMALL", 0)  # few rows had another order then
    root, config, _ = study
    data = data_library.load(config.experiment.data, seed=0, cache=root / "runs/cache")
    named = hashlib.sha256()
    texts = {path: path.read_bytes() for path in sorted((root / "corp").iterdir())}
    for path, text in texts.items():
        name = f"corp/{path.name}".encode()
        named.update(len(name).to_bytes(8, "little") + name + hashlib.sha256(text).digest())
    settings = {"layout": 1, "corpus": "files", "validation": 0.4, "test": 0.05,
                "deduplicate": True, "content": named.hexdigest()}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    parts = [key, {"name": "bytes"}, "Contiguous(segments=False)", 0, 16, 4, None]
    old = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    batches = data.train_batches()
    batches.set_state({"step": 2, "data": old})
    assert batches.step == 2 and batches.get_state()["data"] != old
    with pytest.raises(DataError, match="the Python that runs"):
        batches.set_state({"step": 2, "data": "0" * 16})


def test_a_tokenizer_trained_on_the_corpus_is_kept_with_the_run(study, monkeypatch):
    pytest.importorskip("tokenizers")
    root, config, _ = study
    config = apply(config, {"experiment.data.tokenizer": dict(name="bpe", vocab_size=270),
                            "experiment.train.steps": 1, "experiment.eval.overrides": None})
    run_member(config, test=False)
    for name in ("corp", "runs/cache"):
        (root / name).rename(root / f"away-{Path(name).name}")
    run = lcx.load(folder_of(config))
    assert run.tokenizer.vocab_size == 270 == run.model.vocab_size
    assert run.decode(run.encode("the number")) == "the number" and len(run.encode(TEXT)) < 200
    assert isinstance(run.generate("the number", 2), str)


def test_only_training_needs_what_training_needs(study):
    """A batch that the devices here cannot share, and a tracker that is not installed."""
    _, config, _ = study
    here = apply(config, {"runtime.mesh.data": 8})
    with pytest.raises(ConfigError, match="batch_size=4 must be a multiple of 8"):
        check(here)
    check(here, training=False)
