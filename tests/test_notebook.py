"""The Python API on a run that was really trained, and the example notebook, cell by cell."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lcx
from lcx.config import apply, base_config
from lcx.errors import ConfigError, DataError
from lcx.lanes import sequence
from lcx.study.run import evaluate_member, folder_of, run_member

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "quickstart.ipynb"
TEXTS = [f"the number {n} is not the number {n + 1}. " * 8 for n in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a hybrid model: a recurrence, then attention."""
    root = tmp_path_factory.mktemp("study")
    (root / "texts").mkdir()
    for n, text in enumerate(TEXTS):
        (root / "texts" / f"{n}.txt").write_text(text)
    config = apply(base_config(), {
        "experiment.model.width": 16, "experiment.model.depth": 2,
        "experiment.model.mixer": dict(name="attention", num_heads=2),
        "experiment.model.pattern": [dict(mixer=dict(name="rglru", num_heads=2)), {}],
        "experiment.data.corpus": dict(name="files", paths=str(root / "texts")),
        "experiment.data.train_length": 16, "experiment.data.batch_size": 8,
        "experiment.data.validation": 0.5, "experiment.train.steps": 6,
        "experiment.eval.max_factor": 2, "experiment.eval.targets": 16,
        "experiment.eval.resamples": 50, "runtime.out": str(root / "runs"),
        "runtime.data_cache": str(root / "cache"), "runtime.mesh.data": 1,
        "runtime.compile_cache": "", "runtime.name": "tiny"})
    run_member(config)
    return folder_of(config)


@pytest.fixture(scope="module")
def run(folder):
    return lcx.load(folder)


def test_a_loaded_run_says_what_it_is(run, folder):
    assert "rglru + attention [rope]" in repr(run) and "16 for 6 steps" in repr(run)
    assert run.config.experiment.train.steps == 6 and run.train_length == 16
    assert run.decode(run.encode("naïve")) == "naïve" and run.parameters > 1000
    assert set(run.rows()["run"]) == {folder.name} == set(lcx.rows(folder.parent)["run"])


def test_scores_of_own_texts_are_those_of_the_ladder(run, folder):
    """The validation documents, given as one's own texts, with the ladder's block and seed."""
    documents = {d.name: run.decode(d.tokens) for d in run.data.evaluation_documents(36)}
    found = lcx.score(run, documents, targets=16)
    rows = lcx.rows(folder).query("metric == 'bpb' and method == 'same_target'")
    expected = rows.sort_values("length")
    assert found["context"].tolist() == expected["length"].tolist() == [4, 8, 12, 16, 32]
    np.testing.assert_allclose(found["bpb"], expected["value"], rtol=1e-6)
    gap = lcx.rows(folder).query("metric == 'bpb_gap'").sort_values("length")
    np.testing.assert_allclose(found["gap"], gap["value"], atol=1e-6)


def test_texts_may_be_files_and_lengths_any(run, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(TEXTS[0])
    found = lcx.score(run, [path, TEXTS[0]], lengths=[7, 3])
    assert found["context"].tolist() == [3, 7] and found["documents"].tolist() == [2, 2]
    assert found["low"].isna().all() and found["gap"].isna().all()  # two texts; no rung at L


def test_losses_are_what_the_model_gives_each_token(run):
    text = TEXTS[0][:20]
    ids = run.encode(text)
    logits, _ = jax.jit(run.model.apply)(run.variables, ids[None, :-1], sequence(1, 19))
    logits = np.asarray(logits[0], np.float64)
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(19), ids[1:]]
    np.testing.assert_allclose(run.losses(text), expected, rtol=1e-4)


def compiled(caplog, call):
    """What XLA is asked to compile during a call."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        call()
    return [message.split()[1] for message in caplog.messages if message.startswith("Compiling ")]


def test_a_programs_second_call_compiles_nothing(run, folder, caplog):
    """Four sizes of piece serve any prompt, in every call and of every run of one config."""
    assert compiled(caplog, lambda: run.generate("a" * (64 + 8 + 1), 3))
    for length, more in ((1, {}), (10, {}), (26, dict(temperature=0.7, top_p=0.9, seed=3)),
                         (90, {})):
        again = functools.partial(run.generate, TEXTS[0][:length], 3, **more)
        assert not compiled(caplog, again)
    other = lcx.load(folder)
    assert other.model is not run.model
    assert not compiled(caplog, lambda: other.generate(TEXTS[1][:9], 2))
    run.losses(TEXTS[0][:12]), run.capture(TEXTS[0][:12])
    assert not compiled(caplog, lambda: other.losses(TEXTS[1][:12]))
    assert not compiled(caplog, lambda: other.capture(TEXTS[1][:12]))
    # Another backend, and another scheme, are other programs.
    apart = lcx.load(folder, {"runtime.backend": "reference"})
    assert compiled(caplog, lambda: apart.generate("abc", 2))
    assert compiled(caplog, lambda: lcx.load(folder, {"experiment.model.position": "no_pe"})
                    .generate("abc", 2))


def test_a_tables_end_is_known_before_the_first_token(folder, caplog):
    """16 trained positions and one more token: an error, and nothing is compiled for it."""
    run = lcx.load(folder, {"experiment.model.position": "learned"})
    words, end = TEXTS[0], "ids 0..15, not for 16"
    for call in (lambda: run.generate(words[:10], 8), lambda: run.losses(words[:18]),
                 lambda: run.capture(words[:17])):
        with pytest.raises(ConfigError, match=end):
            assert not compiled(caplog, call)
        assert not [m for m in caplog.messages if m.startswith("Compiling ")]
    frame = lcx.score(run, TEXTS, lengths=[8, 12, 13])
    assert frame["status"].str.startswith("ok").tolist() == [True, True, False]
    assert end in frame["status"][2]
    assert len(run.generate(words[:10], 7)) > 0 and np.isfinite(run.losses(words[:17])).all()


def test_captured_attention_is_the_weights_of_the_output(run):
    recurrent, softmax = run.capture(TEXTS[0][:12])
    assert "attention" not in recurrent and "log_decay" in recurrent["inner"]
    weights, value = softmax["attention"], softmax["inner"]["value"]
    assert weights.shape == (1, 2, 12, 12) and np.all(np.triu(weights[0, 0], 1) == 0)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.einsum("bhts,bshv->bthv", weights, value), softmax["outer"],
                               rtol=1e-4, atol=1e-6)
    # RoPE by hand: the scores of the rotated queries and keys.
    frequency = 10_000.0 ** -(np.arange(4) / 4)
    query, key = (_rotated(np.asarray(softmax["inner"][n][0], np.float64), frequency)
                  for n in ("query", "key"))
    scores = np.einsum("thk,shk->hts", query, key) / math.sqrt(query.shape[-1])
    scores = np.where(np.tri(12, dtype=bool), scores, -np.inf)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights[0], expected, rtol=1e-4)


def test_the_same_weights_under_another_scheme(run, folder):
    other = lcx.load(folder, {"experiment.model.position": "no_pe"})
    assert other.capture("abcd")[1]["lanes"].transport is None
    assert not np.allclose(other.losses(TEXTS[0][:16]), run.losses(TEXTS[0][:16]))
    evaluate_member(folder, ["experiment.model.position=no_pe"])
    arms = set(lcx.rows(folder)["arm"])
    assert run.rows()["mixer"][0] == "rglru(num_heads=2)/attention(num_heads=2)"
    assert arms == {"rglru + attention [rope]", "rglru + attention [rope], tested as no_pe"}


FAR = dict(name="rope", base=500)


@pytest.mark.parametrize("given", [
    "position=rope,base=500", ["position=rope,base=500"], "--override position=rope,base=500",
    'experiment.model.position={"name": "rope", "base": 500}', {"position": "rope,base=500"},
    ('--config.experiment.model.position={"name": "rope", "base": 500}',), {"position": FAR},
    {"experiment.model.position": FAR}, {"config.experiment.model.position": FAR},
], ids=str)
def test_load_takes_what_the_command_line_takes(folder, given, monkeypatch):
    class Opened(Exception):
        pass

    def opens(where, config):
        raise Opened(config)

    monkeypatch.setattr("lcx.study.notebook.open_run", opens)
    with pytest.raises(Opened) as caught:
        lcx.load(folder, given)
    (config,) = caught.value.args
    assert config.experiment.model.position == FAR and config.experiment.eval.max_factor == 2


def test_several_overrides_and_what_is_none():
    from lcx.config import read_overrides

    assert dict(read_overrides(["position=no_pe", "max_factor=4", "runtime.backend=chunked"])) == {
        "experiment.model.position": dict(name="no_pe"), "experiment.eval.max_factor": 4,
        "runtime.backend": "chunked"}
    assert read_overrides({"chunk": None, "max_factor": 8, "position": ["rope", "log_n"]}) == [
        ("experiment.eval.chunk", None), ("experiment.eval.max_factor", 8),
        ("experiment.model.position", ["rope", "log_n"])]
    assert read_overrides(None) == read_overrides({}) == read_overrides([]) == []
    for given, told in ((5, "a text .position=yarn"), ([5], "a text"), ("yarn", "KEY=VALUE"),
                        ("positon=yarn", "did you mean 'position'")):
        with pytest.raises(ConfigError, match=told):
            read_overrides(given)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda run: lcx.load(run.folder.parent), ConfigError, "several runs; name one: .*seed 0"),
    (lambda run: lcx.load("nowhere"), ConfigError, "runs/<name>/<run id>"),
    (lambda run: lcx.load(run.folder, {"experiment.model.positon": "no_pe"}), ConfigError,
     "did you mean 'position'"),
    (lambda run: lcx.rows("nowhere"), DataError, "lcx sweep"),
    (lambda run: lcx.score(run, "short"), DataError, "longest text has 5 tokens, and 8 are"),
    (lambda run: lcx.score(run, str(run.folder / "config.json")), DataError, "Path\\('"),
    (lambda run: lcx.score(run, Path("nowhere")), DataError, "cannot read 'nowhere'"),
    (lambda run: lcx.score(run, [3]), DataError, "is a int; give a str"),
    (lambda run: lcx.score(run, []), DataError, "nothing to score"),
    (lambda run: lcx.score(run, TEXTS, lengths=[0]), ConfigError, "1 or more"),
    (lambda run: run.capture("x", "atention"), ConfigError, "did you mean 'attention'"),
    (lambda run: run.capture(np.array([999])), DataError, "0..255"),
    (lambda run: run.losses("x"), DataError, "two tokens"),
    (lambda run: lcx.scores, AttributeError, "load, rows, score"),
])
def test_errors_say_what_to_do(run, call, error, message):
    with pytest.raises(error, match=message):
        call(run)


def test_importing_lcx_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import lcx, sys; assert 'score' in dir(lcx); print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_example_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("LCX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(Path(".cache/jax").absolute()))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as on a laptop
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    steps = "config.experiment.train.steps = "
    (setup,) = [cell for cell in notebook.cells if steps in cell.source]
    setup.source = setup.source.replace(f"{steps}600", f"{steps}30")  # all it shows but skill
    client.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=tmp_path)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    told = "".join(output["text"] for output in shown if output.get("name") == "stderr")
    assert "WARNING" not in told and "INFO" not in told
    assert NOTEBOOK.stat().st_size < 200_000 and "/tmp" not in json.dumps(notebook.cells[:3])


def _rotated(x, frequency):
    """RoPE in half-split pairs: x [T,H,K]."""
    angle = np.arange(len(x))[:, None, None] * frequency
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           b * np.cos(angle) + a * np.sin(angle)], -1)
