"""docs/mixers.md is what the code says; `lcx mixers --page docs` writes it again."""

from pathlib import Path

import pytest

from lcx import lookup, mixers
from lcx.cli import main
from lcx.study import mixers_page

PAGE = Path(__file__).parents[1] / "docs" / "mixers.md"


def test_the_page_is_in_step_with_the_code(tmp_path):
    """Every mixer has its row, as it is now; the costs beside it are the bench's."""
    (tmp_path / mixers_page.COSTS).write_bytes((PAGE.parent / mixers_page.COSTS).read_bytes())
    wanted, found = mixers_page.write(tmp_path).read_text(), PAGE.read_text()
    differ = [line for line in wanted.splitlines() if line not in found.splitlines()]
    assert wanted == found, f"run `{mixers_page.COMMAND}`; it differs in: {differ[:5]}"
    for name in lookup.names(mixers.PACKAGE):
        assert found.count(f"\n| `{name}` | {lookup.find(mixers.PACKAGE, name).family} |") == 1


def test_the_state_is_a_layers_own():
    """Counted by hand: a window's keys and values; a matrix per head; all keys."""
    small, large = mixers_page.record("attention")["state"]
    assert small < large and large - small == 2 * 128 * (65536 - 1024) + (65536 - 1024)  # and ids
    sizes = mixers_page.record("linear_attention")["state"]
    assert sizes[0] == sizes[1] and sizes[0] >= 4 * 32 * 33


class Layer:
    """A named layer (arXiv:1234.56789): [B,T,D] -> [B,T,D].

    y = C . h, h = a h + x; of A
    two lines. More of it.
    """


class Formula:
    """A layer (Some Model, arXiv:1234.56789): y = x^2, all in one line."""


@pytest.mark.parametrize("cls, told", [
    (Layer, "A named layer: y = C . h, h = a h + x."),
    (Formula, "A layer: y = x^2, all in one line.")])
def test_a_summary_holds_the_formula(cls, told):
    assert mixers_page.summary(cls) == told


def test_from_the_command_line(capsys):
    assert main(["mixers", "retention", "--json"]) == 0
    assert '"name": "retention"' in capsys.readouterr().out
    assert main(["mixers", "retension"]) == 2
    assert "did you mean 'retention'" in capsys.readouterr().err
