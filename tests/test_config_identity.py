"""Run ids: what counts, what does not, and that today's ids and defaults stay what they are.

`python -m tests.test_config_identity` adds new defaults to tests/defaults.json (and moves none).
"""

import dataclasses
import hashlib
import importlib
import json
from pathlib import Path

import pytest

from lcx import lookup
from lcx.config import (
    COMPONENTS,
    apply,
    assign,
    base_config,
    essence,
    load,
    load_sweep,
    override,
    run_id,
)
from lcx.config import base as base_module
from lcx.config.base import INJECTED
from lcx.config.identity import resolve
from lcx.errors import ConfigError, DataError

CONFIGS = Path(__file__).parents[1] / "configs"
DEFAULTS = Path(__file__).parent / "defaults.json"
POSITION, PATTERN = "experiment.model.position", "experiment.model.pattern"
OVERRIDES = "experiment.eval.overrides"
SLOTS = {path: package for path, package in COMPONENTS.items() if path.startswith("experiment.")}


def defaults_of_today():
    """Every default that an id leaves out: of the keys of `experiment`, and of components."""
    found = dict(essence._defaults())
    for package in sorted({*SLOTS.values()}):
        for name in lookup.names(package):
            for key, value in lookup.fields(lookup.find(package, name)).items():
                if key not in INJECTED.get(package, ()) and value is not dataclasses.MISSING:
                    found[f"{package}.{name}.{key}"] = essence.one_spelling(resolve(value))
    return found


def test_a_default_that_moves_is_told_to_the_ids():
    """A key left out of an id at its default must go on meaning what it meant."""
    stored, today = json.loads(DEFAULTS.read_text()), defaults_of_today()
    moved = [key for key in stored if key in today
             and not essence.same(essence.BORN.get(key, today[key]), stored[key])]
    assert not moved, (f"{moved}: a stored run without these keys had the old defaults; write "
                       "them into lcx.config.essence.BORN, and the ids of both stay apart")
    new = sorted(today.keys() - stored.keys())
    assert not new, f"run `python -m tests.test_config_identity` to add {new} to {DEFAULTS.name}"


# Ids of the shipped configs: whoever changes one makes every stored run of it a stranger.
SHIPPED = {
    "quickstart.py": "b461a1f76e cdc552f44a bfb9fb84a5 4c4a701a72 d118618fe7",
    "recipes.py": "6a16918efd 2531e11d29 13af8bf035 a04d307e40 3db27fba2e 00bd8d74d2",
    "hybrids.py": "4c2e2c0027 4f24f1b573 1d63c768f0 ad4709c5f2 d03e39177d 25a4a9db1e",
}


@pytest.mark.parametrize("file", sorted(SHIPPED))
def test_ids_of_shipped_configs(file):
    found = [run_id(config) for _, config in load_sweep(str(CONFIGS / file))]
    assert found == SHIPPED[file].split()


@pytest.mark.parametrize(("spec", "expected"), [
    ("quickstart.py:full", "1ef71cd7d7"), ("quickstart.py:gpu", "007624a065"),
    ("recipes.py:drope", "7cf399d9bd"), ("tasks.py:mqar,mamba2", "0031a7c017"),
    ("tasks.py:copy,attention", "e4c006323c"),
])
def test_ids_of_single_shipped_configs(spec, expected):
    assert run_id(load(str(CONFIGS / spec))) == expected


def test_the_id_of_the_defaults_and_of_an_override():
    assert run_id(base_config()) == "05ba3ad1c9"
    tested = apply(base_config(), {OVERRIDES: [{POSITION: {"name": "yarn", "factor": 8}}]})
    assert run_id(tested) == "467d068aa2"


@pytest.fixture
def texts(tmp_path):
    """A corpus of fixed bytes."""
    folder = tmp_path / "corp"
    (folder / "deep").mkdir(parents=True)
    for name, text in (("a.txt", b"one text\n"), ("b.txt", b"another\n"), ("deep/c.txt", b"third")):
        (folder / name).write_bytes(text)
    return folder


def over(paths, **options):
    corpus = {"experiment.data.corpus": dict(name="files", paths=paths, **options)}
    file = Path(__file__).parents[1] / "configs" / "quickstart.py"
    return load(str(file), corpus)


def test_files_count_by_their_content(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = over("corp")
    content = "f290300a9ce0cf0431dcc71ea9df068a9a126b551499cc2f2a86a7f00982a081"
    digests = [hashlib.sha256(text).digest() for text in (b"one text\n", b"another\n", b"third")]
    assert content == hashlib.sha256(b"".join(digests)).hexdigest()
    assert config.experiment.data.corpus["content"] == content
    assert run_id(config) == "a30dbf35a7"
    spellings = ["corp/", str(texts), ["corp"], ("corp/",), "./corp", "corp/../corp",
                 ["corp/a.txt", "corp/b.txt", "corp/deep"]]
    assert {run_id(over(paths)) for paths in spellings} == {run_id(config)}
    assert run_id(over("corp", patterns="*.txt", on_bad="skip")) == run_id(config)
    texts.rename(tmp_path / "moved")
    assert run_id(over("moved")) == run_id(config)
    with pytest.raises(DataError, match="no such file or folder: 'corp'"):
        over("corp")
    # A config that knows the content needs no files: it is known by that.
    assert run_id(over("corp", content=content)) == run_id(config)
    (tmp_path / "moved/b.txt").write_bytes(b"another!")
    changed = over("moved")
    assert run_id(changed) != run_id(config)
    assert run_id(over("moved", separator="t")) not in (run_id(changed), run_id(config))


def test_a_tokenizer_counts_by_its_content(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(["abab"], tokenizers.trainers.BpeTrainer(
        vocab_size=258, initial_alphabet=letters, show_progress=False))
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        model.save(str(path))
    ids = [run_id(load(str(CONFIGS / "quickstart.py"), {
        "experiment.data.tokenizer": dict(name="bpe", path=str(path))})) for path in paths]
    assert ids[0] == ids[1] != run_id(load(str(CONFIGS / "quickstart.py"), {
        "experiment.data.tokenizer": "bpe"}))


def with_values(values):
    config = base_config()
    for path, value in values.items():
        assign(config, path, value)
    return run_id(config)


SAME = [
    ({}, {POSITION: dict(name="rope", base=10000.0)}),
    ({}, {POSITION: dict(name="rope", base=10000)}),
    ({POSITION: dict(name="rope", base=5)}, {POSITION: dict(name="rope", base=5e0)}),
    ({}, {"experiment.train.optimizer": dict(name="adamw")}),
    ({}, {"experiment.train.clip": 1}),
    ({}, {"experiment.data.packing": {"name": "contiguous"}}),
    ({}, {PATTERN: [{}]}),
    ({}, {PATTERN: [dict(position="rope", mixer=dict(name="attention"))]}),
    ({POSITION: "alibi"}, {PATTERN: [dict(position="alibi")]}),
    ({PATTERN: [{}, dict(mixer="rglru")]},
     {PATTERN: [dict(position=dict(name="rope", base=1e4)), dict(mixer="rglru", mlp="gated")]}),
    # What every layer says for itself, the model says to nobody.
    ({PATTERN: [dict(position="rope"), dict(position="alibi")]},
     {PATTERN: [dict(position="rope"), dict(position="alibi")], POSITION: "no_pe"}),
    ({OVERRIDES: [{POSITION: "yarn"}]}, {OVERRIDES: [{POSITION: dict(name="yarn", beta_fast=32)}]}),
    ({OVERRIDES: [{POSITION: dict(name="pi", factor=8)}]},
     {OVERRIDES: [{POSITION: dict(name="pi", factor=8.0)}]}),
    ({OVERRIDES: [{POSITION: dict(name="rope", base=5)}]}, {OVERRIDES: [{f"{POSITION}.base": 5}]}),
    ({POSITION: ["randomized", "rope"]}, {POSITION: ["randomized", dict(name="rope", base=1e4)]}),
    ({"experiment.data.corpus": dict(name="tfds", dataset="a:1.0.0")},
     {"experiment.data.corpus": dict(name="tfds", dataset="a:1.0.0", data_dir="/mnt/here")}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_spellings_of_one_experiment(one, other):
    assert with_values(one) == with_values(other)


APART = [
    ({POSITION: dict(name="rope", base=5)}, {POSITION: dict(name="rope", base=6)}),
    ({POSITION: "rope"}, {POSITION: "no_pe"}),
    ({"experiment.model.mlp": None}, {}),
    ({"experiment.data.deduplicate": False}, {}),
    ({"experiment.data.epochs": 1}, {}),
    ({PATTERN: [dict(mixer="rglru"), {}]}, {PATTERN: [{}, dict(mixer="rglru")]}),
    # Two layers to a period are other parameters, with other first values, than one.
    ({PATTERN: [{}, {}]}, {}),
    ({OVERRIDES: [{POSITION: "yarn"}]}, {}),
    ({OVERRIDES: [{POSITION: dict(name="pi", factor=8)}]},
     {OVERRIDES: [{POSITION: dict(name="pi", factor=4)}]}),
    ({OVERRIDES: [{POSITION: "rope"}]}, {POSITION: "alibi", OVERRIDES: [{POSITION: "rope"}]}),
    # A stack of one names its parameters otherwise, and so draws other first values.
    ({POSITION: ["alibi"]}, {POSITION: "alibi"}),
]


@pytest.mark.parametrize(("one", "other"), APART)
def test_two_experiments(one, other):
    assert with_values(one) != with_values(other)


@pytest.fixture
def fresh():
    """No default that a test changes is remembered."""
    yield
    essence._defaults.cache_clear()
    override._defaults.cache_clear()


EXAMPLES = [{}, {POSITION: "alibi"}, {PATTERN: [{}, dict(mixer="rglru")]},
            {OVERRIDES: [{POSITION: "yarn"}, {"experiment.eval.max_factor": 2}]},
            {"experiment.train.schedule": dict(name="warmup_cosine", final=0.2)}]


def test_a_new_key_leaves_every_id_as_it_was(monkeypatch, fresh):
    before = [with_values(values) for values in EXAMPLES]
    train, evaluation = base_module._train, base_module._eval

    def more(make):
        section = make()
        section.new_today = 3
        return section
    monkeypatch.setattr(base_module, "_train", lambda: more(train))
    monkeypatch.setattr(base_module, "_eval", lambda: more(evaluation))
    essence._defaults.cache_clear()
    override._defaults.cache_clear()
    assert [with_values(values) for values in EXAMPLES] == before
    for key in ("experiment.train.new_today", "experiment.eval.new_today"):
        assert with_values({key: 4}) not in before
        assert with_values({key: 3}) == before[0]
    assert with_values({OVERRIDES: [{"experiment.eval.new_today": 4}]}) not in before


def test_a_new_option_of_a_component_leaves_every_id_as_it_was(monkeypatch):
    before = [with_values(values) for values in EXAMPLES]
    module = importlib.import_module("lcx.train.schedules.warmup_cosine")
    new = dataclasses.make_dataclass("WarmupCosine", [("new_today", float, 0.5)], frozen=True,
                                     bases=(module.WarmupCosine,))
    monkeypatch.setattr(module, "WarmupCosine", new)
    assert [with_values(values) for values in EXAMPLES] == before
    changed = {"experiment.train.schedule": dict(name="warmup_cosine", new_today=0.25)}
    assert with_values(changed) not in before
    same = {"experiment.train.schedule": dict(name="warmup_cosine", new_today=0.5)}
    assert with_values(same) == before[0]


def test_a_default_that_changes_keeps_old_and_new_apart(monkeypatch, fresh):
    """With the old default in BORN a stored config keeps its id, and the new default gets one."""
    old = with_values({})
    train = base_module._train

    def doubled():
        section = train()
        section.clip = 2.0
        return section
    monkeypatch.setattr(base_module, "_train", doubled)
    monkeypatch.setitem(essence.BORN, "experiment.train.clip", 1)
    essence._defaults.cache_clear()
    override._defaults.cache_clear()
    assert with_values({"experiment.train.clip": 1.0}) == old != with_values({})
    monkeypatch.setitem(essence.BORN, "lcx.positions.alibi.slopes", None)
    monkeypatch.setitem(essence.BORN, "lcx.positions.rope.base", 77)
    stated = {"experiment.train.clip": 1.0, POSITION: dict(name="rope", base=77.0)}
    assert with_values(stated) == old != with_values({"experiment.train.clip": 1.0,
                                                      POSITION: dict(name="rope", base=10000.0)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_has_no_id(value):
    with pytest.raises(ConfigError, match="finite numbers"):
        with_values({POSITION: dict(name="rope", base=value)})


if __name__ == "__main__":
    stored = json.loads(DEFAULTS.read_text()) if DEFAULTS.exists() else {}
    lines = {**defaults_of_today(), **stored}
    DEFAULTS.write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(lines[key])}"
                                           for key in sorted(lines)) + "\n}\n")
