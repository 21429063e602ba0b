"""Pictures of schemes: their numbers, their files, and what the command line refuses."""

import sys

import numpy as np
import pytest

from lcx import lookup, positions
from lcx.cli import main
from lcx.positions import alibi, listing
from lcx.study import distances, gallery


def test_the_curves_are_the_schemes():
    flat = distances.curve("no_pe", 16, 16)
    np.testing.assert_allclose(flat.logits, 0, atol=1e-9)
    falling = distances.curve("alibi", 32, 16)
    np.testing.assert_allclose(falling.logits, -alibi.slopes(4)[:, None] * falling.distances,
                               atol=1e-6)
    turning = distances.curve("rope", 64, 16)
    ladder = 1e4 ** (-2.0 * np.arange(32) / 64)
    score = 2 * np.cos(np.arange(64)[:, None] * ladder).sum(1) / 8  # of queries and keys of ones
    np.testing.assert_allclose(turning.logits[0], (score - score[0])[turning.distances], atol=1e-5)
    assert turning.distances[-1] == 63


def test_embeddings_act_and_a_table_ends():
    waves = distances.curve("sinusoidal", 16, 16)
    assert np.abs(waves.logits[:, 1:]).min() > 1e-3
    outside = distances.curve("learned", 32, 16)
    assert np.isnan(outside.logits).all() and "ids 0..15, not for 31" in outside.note


def test_what_shows_nothing_alone_stands_over_another_scheme():
    assert distances.shown("rope") == "rope" and distances.shown("path") == "path"
    assert distances.shown("log_n") == ["rope", dict(name="log_n")]
    assert distances.shown(["alibi", "log_n"]) == ["alibi", "log_n"]
    trained, tested = distances.panels("randomized", 8)
    plain = distances.curve("rope", 8, 8)
    assert np.abs(trained.logits - plain.logits).max() > 0.1  # ids as in training
    assert tested.length == 64


def test_plot_and_gallery_write_files(tmp_path, capsys, monkeypatch):
    file = tmp_path / "new" / "two.svg"
    words = ["positions", "alibi", '{"name": "rope", "base": 100.0}', "--length", "8"]
    assert main([*words, "--plot", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    first = file.read_text()
    assert "alibi" in first and "distance to the key" in first
    assert main([*words, "--plot", str(file)]) == 0
    assert file.read_text() == first  # the same picture byte for byte
    monkeypatch.setattr(lookup, "names", lambda package: ("alibi", "no_pe"))
    assert main(["positions", "--gallery", str(tmp_path), "--length", "8"]) == 0
    page = (tmp_path / "positions.md").read_text()
    assert "| [alibi](#alibi) | SEP | Separable | [arXiv:2108.12409]" in page
    for name in ("alibi", "no_pe"):
        assert f"(figures/positions/{name}.svg)" in page
        assert (tmp_path / "figures" / "positions" / f"{name}.svg").exists()
    assert page.index("## ID") < page.index("### no_pe") < page.index("## SEP")


def test_chosen_schemes_are_listed(capsys):
    assert main(["positions", "rope", "alibi"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("rope") and "2108.12409" in second


@pytest.mark.parametrize("words, said", [
    (["rope", "--plot", "alibi"], "name schemes before --plot"),
    (["--plot"], "--plot needs schemes"),
    (["alibis", "--plot"], "did you mean 'alibi'"),
    (['{"name": "rope", "bass": 3}', "--plot"], "did you mean 'base'"),
    (['{"name": "rope"', "--plot"], "is not JSON"),
    (["rope", "--plot", "--length", "3"], "8 or more"),
    (["rope", "--gallery", "docs"], "leave their names out"),
])
def test_mistakes_are_told(words, said, capsys):
    assert main(["positions", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_matplotlib_there_is_a_hint(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["positions", "no_pe", "--plot", str(tmp_path / "a.svg")]) == 2
    assert "pip install lcx[report]" in capsys.readouterr().err


def test_every_class_has_a_heading():
    kinds = {listing.record(name)["class"] for name in lookup.names(positions.PACKAGE)}
    assert kinds <= set(gallery.CLASSES)
