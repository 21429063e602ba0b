"""Configs: typos and wrong types are caught, nodes are whole, the run id is the experiment."""

import json
import subprocess

import pytest

from lcx.config import (
    assign,
    base_config,
    canonical_json,
    code_version,
    identity,
    load,
    load_sweep,
    resolve,
    run_id,
)
from lcx.config.override import leaf_paths
from lcx.errors import ConfigError

FILE = '''
from lcx.config import base_config

def get_config(arg=None):
    config = base_config()
    config.experiment.model.width = 32
    config.experiment.model.position = dict(name="rope", base=500)
    if arg == "full":
        config.experiment.train.steps = 99
    return config

def sweep(arg=None):
    for position in ("rope", dict(name="no_pe")):
        for seed in range(3 if arg == "full" else 1):
            yield {"experiment.model.position": position, "experiment.seed": seed}
'''


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(FILE)
    return str(file)


def write(tmp_path, body: str) -> str:
    file = tmp_path / "user.py"
    file.write_text("from lcx.config import base_config\ndef get_config():\n"
                    f"    c = base_config()\n    {body}\n    return c\n")
    return str(file)


def mutations(word: str):
    """Misspellings of a key: a letter lost, doubled or swapped, another case, a tail."""
    yield from (word[:i] + word[i + 1:] for i in range(len(word)))
    yield from (word[:i] + word[i] + word[i:] for i in range(len(word)))
    yield from (word[:i] + word[i + 1] + word[i] + word[i + 2:] for i in range(len(word) - 1))
    yield from (word.upper(), word + "_", word + "2")


def test_every_mutated_key_is_caught_in_an_override():
    config = base_config()
    known = leaf_paths(config)
    values = resolve(config)
    caught = 0
    for path in known:
        value = values
        for key in path.split("."):
            value = value[key]
        keys = path.split(".")
        for i, key in enumerate(keys):
            for wrong in mutations(key):
                mutated = ".".join([*keys[:i], wrong, *keys[i + 1:]])
                if mutated in known:
                    continue
                with pytest.raises(ConfigError, match="did you mean|Known:|needs|unknown"):
                    assign(config, mutated, value)
                caught += 1
    assert caught > 2000


def test_every_mutated_key_is_caught_in_a_file(tmp_path, monkeypatch):
    for path in leaf_paths(base_config()):
        section, _, key = path.rpartition(".")
        for body in (f"c.{section}.{key}x = c.{path}", f"c.{section}['{key[1:]}'] = 1",
                     f"c.{section}x.{key} = 1"):
            with pytest.raises(ConfigError, match=r"user\.py:4: unknown key .*did you mean|Known"):
                load(write(tmp_path, body))


def test_a_plain_dict_is_checked_as_strictly(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text("def get_config():\n    return {'experiment': {'model': {'widht': 3}}}\n")
    with pytest.raises(ConfigError, match="'widht' in 'experiment.model'; did you mean 'width'"):
        load(str(file))


@pytest.mark.parametrize(("override", "message"), [
    ("experiment.model.width=3.5", "must be int"),
    ("experiment.model.width=wide", "must be int"),
    ("experiment.model.width=true", "must be int"),
    ("experiment.model.width=none", "must be int"),
    ("experiment.model.tie_embeddings=1", "must be bool"),
    ("experiment.train.clip=much", "must be float"),
    ("experiment.model=3", "is a section"),
    ("model.width=3", "did you mean 'experiment.model.width'"),
    ("experiment.model.width", "needs a value"),
    ("experiment.model.position=roqe", "unknown position 'roqe'; did you mean 'rope'"),
    ("experiment.model.position.bsae=3", "no option 'bsae'; did you mean 'base'"),
    ("experiment.model.position.site=3", "no option 'site'"),
    ("experiment.model.position.base=big", "must be float"),
    ('experiment.model.position={"nam": "rope"}', "needs a name"),
    ("experiment.model.position={name:", "quote it for the shell"),
    ("experiment.model.position=[]", "empty stack"),
    ("experiment.model.position=3", "must be a component"),
    ('experiment.model.pattern=[{"postion": "rope"}]', "did you mean 'position'"),
    ('experiment.model.pattern=[{"position": "roqe"}]', "did you mean 'rope'"),
])
def test_wrong_overrides_say_what_to_do(path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(path, [override])


def test_overrides_are_read_as_the_type_of_their_key(path):
    config = load(path, ["experiment.train.steps=1e3", "experiment.train.clip=2",
                         "experiment.eval.chunk=64", "experiment.model.tie_embeddings=false",
                         "experiment.model.vocab_size=300", "runtime.out=/tmp/a=b"])
    assert config.experiment.train.steps == 1000
    assert isinstance(config.experiment.train.clip, float)
    assert config.experiment.eval.chunk == 64
    assert load(path, ["experiment.eval.chunk=none"]).experiment.eval.chunk is None
    assert load(path, ["experiment.model.mlp=none"]).experiment.model.mlp is None
    assert config.experiment.model.tie_embeddings is False
    assert config.experiment.model.vocab_size == 300
    assert config.runtime.out == "/tmp/a=b"


@pytest.mark.parametrize(("text", "expected"), [
    ("no_pe", {"name": "no_pe"}),
    ('{"name": "rope", "base": 7}', {"name": "rope", "base": 7.0}),
    ("{'name': 'rope'}", {"name": "rope"}),
    ('["no_pe", {"name": "rope", "base": 2}]', [{"name": "no_pe"}, {"name": "rope", "base": 2.0}]),
])
def test_components_are_assigned_whole(path, text, expected):
    # The file says rope with base 500: nothing of it may stay behind.
    assert load(path, [f"experiment.model.position={text}"]).experiment.model.position == expected


def test_one_option_of_a_component_can_be_set(path):
    config = load(path, ["experiment.model.position.base=9"])
    assert config.experiment.model.position == {"name": "rope", "base": 9.0}


def test_the_run_id_is_a_hash_of_the_experiment_only(path, tmp_path):
    config = load(path)
    assert run_id(config) == run_id(load(path, ["runtime.mesh.fsdp=2", "runtime.out=elsewhere"]))
    assert run_id(config) != run_id(load(path, ["experiment.seed=1"]))
    # One experiment has one id, however it is spelt.
    one, two = (load(path, [f"experiment.train.optimizer={{'name': 'adamw', {options}}}"])
                for options in ("'b1': 0.8, 'b2': 0.9", "'b2': 0.9, 'b1': 0.8"))
    assert run_id(one) == run_id(two)
    same = ["experiment.model.position={'base': 500.0, 'name': 'rope'}", "experiment.train.clip=1"]
    assert run_id(config) == run_id(load(path, same))
    assert canonical_json(config) == canonical_json(json.loads(canonical_json(config)))


def test_a_resolved_config_can_be_run_again(path, tmp_path):
    config = load(path, ["experiment.model.pattern=[{\"mixer\": \"attention\"}, {}]"])
    (tmp_path / "config.json").write_text(canonical_json(config))
    assert resolve(load(str(tmp_path / "config.json"))) == resolve(config)


def test_sweep_members_take_argument_and_command_line(path):
    members = load_sweep(f"{path}:full", ["experiment.model.width=64"])
    assert len({run_id(config) for _, config in members}) == len(members) == 6
    assert {config.experiment.train.steps for _, config in members} == {99}
    assert {config.experiment.model.width for _, config in members} == {64}
    assert members[-1][1].experiment.model.position == {"name": "no_pe"}
    assert members[0][1].experiment.model.position == {"name": "rope"}
    assert load(f"{path}:full").runtime.name == "small-full"


def test_members_do_not_share_state(path):
    first, second = (config for _, config in load_sweep(path))
    first.experiment.model.position["base"] = 1.0
    assert load(path).experiment.model.position["base"] == 500.0
    assert second.experiment.model.position == {"name": "no_pe"}


@pytest.mark.parametrize(("body", "message"), [
    ("c.experiment.model.width = '3'", r"user\.py:4: .*width"),
    ("c.experiment.model.width = True", "must be int"),
    ("raise RuntimeError('no corpus here')", r"user\.py:4: no corpus here"),
    ("c = 3", "must return a config"),
    ("c.experiment.model.position = object()", "numbers, strings, lists and dicts"),
    ("c.experiment.model.position = (", r"user\.py:\d: "),
])
def test_errors_in_a_file_name_it_and_its_line(tmp_path, body, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, body))


def test_missing_files_and_arguments(tmp_path, path):
    with pytest.raises(ConfigError, match=r"no config file .*There are: .*small\.py"):
        load(str(tmp_path / "smal.py"))
    with pytest.raises(ConfigError, match="a config is a Python file"):
        load("quickstart")
    with pytest.raises(ConfigError, match="takes no argument"):
        load(write(tmp_path, "pass") + ":full")
    (tmp_path / "torn.json").write_text('{"experiment": {')
    with pytest.raises(ConfigError, match="not readable JSON"):
        load(str(tmp_path / "torn.json"))


def test_code_version_names_the_commit_and_the_content_of_what_is_in_none(tmp_path, monkeypatch):
    version, dirty = code_version()
    assert version and version != "unknown" and dirty == ("+dirty." in version)
    (tmp_path / "lcx" / "config").mkdir(parents=True)
    file = tmp_path / "lcx" / "config" / "identity.py"
    monkeypatch.setattr(identity, "__file__", str(file))

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b",
                        *words], check=True, capture_output=True)

    def seen():
        code_version.cache_clear()
        return code_version()[0]

    file.write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = seen()
    assert "dirty" not in clean and code_version()[1] is False
    (tmp_path / "notes").write_text("beside the code")
    assert seen() == clean
    file.write_text("two")
    edited = seen()
    assert edited.startswith(f"{clean}+dirty.") and code_version()[1] is True
    git("add", ".")
    assert seen() == edited  # staged or not, it is the same code
    file.write_text("three")
    assert seen() not in (clean, edited)
    file.write_text("two")
    (tmp_path / "lcx" / "new scheme.py").write_text("x")
    assert seen() not in (clean, edited)
    file.unlink()
    assert len({seen(), clean, edited}) == 3
    code_version.cache_clear()
