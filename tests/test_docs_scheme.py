"""docs/adding_a_scheme.md is true: its file is a scheme, its snippets run, the tests enrol it."""

import importlib
import pathlib
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, mixers, positions
from lcx.cli import main
from lcx.errors import ConfigError
from lcx.mixers import matrix
from lcx.positions import alibi, listing

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "adding_a_scheme.md").read_text()
MODULE, RUN, ENROLLED = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
NAME = re.search(r"lcx/positions/(\w+)\.py`:\n", PAGE).group(1)


@pytest.fixture
def installed(tmp_path):
    """The page's file as one more module of the package, for the length of a test."""
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    positions.__path__.append(str(tmp_path))
    lookup.names.cache_clear()
    yield
    positions.__path__.remove(str(tmp_path))
    lookup.names.cache_clear()
    sys.modules.pop(f"lcx.positions.{NAME}", None)
    vars(positions).pop(NAME, None)


def attend(spec, change=lambda found: found, pieces=None):
    """Outputs of attention [1,12,32], in one call or in pieces."""
    mixer = mixers.make(dict(name="attention", num_heads=4), position=spec, width=32,
                        train_length=8)
    x, seq = jax.random.normal(jax.random.key(0), (1, 12, 32)), L.sequence(1, 12)
    found = change(nn.unbox(jax.jit(mixer.init)(jax.random.key(1), x, seq)))
    if pieces is None:
        return jax.jit(mixer.apply)(found, x, seq)[0]
    state, outputs = mixer.init_state(1, 12), []
    for a, b in pieces:
        y, state = jax.jit(mixer.apply)(found, x[:, a:b], seq[a:b], state)
        outputs.append(y)
    return jnp.concatenate(outputs, 1)


def test_the_file_is_short(installed):
    assert len(MODULE.splitlines()) < 60
    assert max(map(len, MODULE.splitlines())) <= 100


def test_the_matrix_names_the_scheme(installed, capsys, monkeypatch):
    """Alone, with what each mixer makes of it; and by name in the listing of all."""
    assert main(["matrix", NAME]) == 0
    told = capsys.readouterr().out
    assert f"{NAME} on delta_net: refused (R3)" in told and f"\n{NAME}  " in told
    assert "rope" not in told.split()
    monkeypatch.setattr(matrix, "cells", lambda schemes, mixers: [
        matrix.cell(scheme, "attention") for scheme in schemes])
    assert main(["matrix"]) == 0
    assert re.search(rf"^EVC .*\b{NAME}\b", capsys.readouterr().out, re.M)
    assert main(["matrix", NAME[:-1]]) == 2
    assert f"did you mean '{NAME}'" in capsys.readouterr().err


def test_a_fault_in_a_scheme_says_which_it_is(installed, tmp_path, capsys):
    broken = f"{NAME}_broken"
    (tmp_path / f"{broken}.py").write_text(MODULE.replace("class LinearRamp", "class LinearRampX"))
    importlib.invalidate_caches(), lookup.names.cache_clear()
    assert main(["matrix", broken]) == 2
    assert "file without a class LinearRampBroken" in capsys.readouterr().err
    source = MODULE.replace("class LinearRamp", "class LinearRampBroken")
    source = source.replace("slope = wide(", "slope = wide(1 / 0 + ")
    (tmp_path / f"{broken}.py").write_text(source)
    sys.modules.pop(f"lcx.positions.{broken}"), lookup.names.cache_clear()
    with pytest.raises(ZeroDivisionError) as caught:
        main(["matrix", broken])
    assert any(f"scheme '{broken}' on mixer" in note for note in caught.value.__notes__)
    sys.modules.pop(f"lcx.positions.{broken}")


def test_the_scheme_is_found_described_and_checked(installed):
    assert NAME in lookup.names(positions.PACKAGE)
    record = listing.record(NAME)
    assert record["lanes"] == ["EventuallyConstant"] and record["class"] == "EVC"
    with pytest.raises(ConfigError, match="did you mean 'window'"):
        attend(dict(name=NAME, windw=3))


def test_the_scheme_does_what_the_page_says(installed):
    slope = lambda found: {**found, "params": {**found["params"], "position": {
        "slope": jnp.asarray(alibi.slopes(4), jnp.float32)}}}
    wide = attend(dict(name=NAME, window=12), slope)
    np.testing.assert_allclose(wide, attend("alibi"), atol=1e-6)  # the limit the page names
    narrow = attend(dict(name=NAME, window=3), slope)
    assert np.abs(narrow - wide).max() > 1e-3
    np.testing.assert_array_equal(attend(NAME), attend(dict(name=NAME, window=4)))  # L0 / 2
    streamed = attend(dict(name=NAME, window=3), slope, ((0, 5), (5, 6), (6, 12)))
    np.testing.assert_allclose(streamed, narrow, atol=1e-6)


def test_the_snippets_run(installed):
    space = {}
    exec(compile(RUN, "adding_a_scheme.md", "exec"), space)
    assert space["y"].shape == (2, 24, 32) and np.isfinite(space["y"]).all()
    exec(compile(ENROLLED, "adding_a_scheme.md", "exec"), space)
    assert space["enrolled"] == [dict(name=NAME), dict(name=NAME, window=3)]


def test_the_page_leaves_nothing_behind():
    assert NAME not in lookup.names(positions.PACKAGE)
    assert not hasattr(positions, NAME)
