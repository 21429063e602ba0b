"""Every key of every shipped config, misspelt by one edit: exit 2 with a suggestion, no compile."""

import copy
import json
import re
from pathlib import Path

import jax
import pytest

from lcx.cli import main
from lcx.config import load, resolve
from lcx.study import run  # noqa: F401  what it imports makes jitted functions of its own

FOLDER = Path(__file__).parents[1] / "configs"
VARIANTS = {  # what each file's get_config takes
    "quickstart": ("", "full", "gpu"),
}
SPECS = [f"{path}:{argument}".rstrip(":") for path in sorted(FOLDER.glob("*.py"))
         for argument in VARIANTS.get(path.stem, ("",))]


def edits(word):
    """One edit each: a letter lost, doubled, swapped with the next, replaced, added."""
    middle = len(word) // 2
    found = {word[:middle] + word[middle + 1:], word[:middle] + word[middle] + word[middle:],
             word[:-2] + word[-1] + word[-2], word[:middle] + "q" + word[middle + 1:], word + "s"}
    return sorted(found - {word, ""})


def places(values, above=()):
    """The path of every key, sections and options of components included."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))
        for number, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                yield from places(item, (*above, key, number))


def renamed(values, place, wrong):
    """A copy with the key at `place` called `wrong`."""
    new = copy.deepcopy(values)
    inside = new
    for key in place[:-1]:
        inside = inside[key]
    inside[wrong] = inside.pop(place[-1])
    return new


def mistakes(values):
    """(place, wrong spelling, config with it) of every key; what is still a key is left out."""
    for place in places(values):
        inside = values
        for key in place[:-1]:
            inside = inside[key]
        for wrong in edits(place[-1]):
            if wrong not in inside:
                yield place, wrong, renamed(values, place, wrong)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: Path(spec).name)
def test_every_misspelt_key_is_caught_with_a_suggestion(spec, tmp_path, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(jax, "jit", lambda *a, **k: compiled.append(a))
    values = resolve(load(spec))
    values["runtime"]["out"] = str(tmp_path / "runs")
    file, caught = tmp_path / "wrong.json", 0
    for place, wrong, mistaken in mistakes(values):
        file.write_text(json.dumps(mistaken))
        assert main(["train", str(file)]) == 2, f"{'.'.join(map(str, place))} as {wrong}"
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and wrong in told and (
            f"'{place[-1]}'" in re.findall(r"did you mean ('[\w.]+')", told) or place[-1] == "name"
            and "needs a name: dict(name=" in told), told
        caught += 1
    for place in places(values):  # on the command line, where a component's options have paths too
        if place[-1] == "name" and len(place) > 2 or any(isinstance(key, int) for key in place):
            continue
        for wrong in edits(place[-1])[:2]:
            override = f"--config.{'.'.join([*place[:-1], wrong])}=1"
            assert main(["train", spec, override]) == 2, override
            assert "did you mean '" in (told := capsys.readouterr().err), told
            caught += 1
    assert caught > 300 and not compiled and not (tmp_path / "runs").exists()
    print(f"{Path(spec).name}: {caught} misspellings caught")
