"""The grid as text and as a page: every cell is there, counted, coloured and with its reason."""

from html.parser import HTMLParser

import pytest

from lcx.cli import main
from lcx.study import grid as drawn

REASON = 'Toeplitz: no <state> of "fixed" size'


def cell(position, mixer, status="native", **more):
    return {"position": position, "mixer": mixer, "status": status, "forms": ["step"],
            "missing": {}, "code": None, "reason": "", "notes": [], **more}


CELLS = [
    cell("rope", "attention"), cell("rope", "retention"), cell("rope", "mamba2"),
    cell("yarn", "attention", notes=["Rotation: R6 absorbed"]), cell("yarn", "retention"),
    cell("yarn", "mamba2", "partial", missing={"chunked": "Rotation: R2 not there"}),
    cell("kerple", "attention"),
    cell("kerple", "retention", "refused", code="R3", reason=REASON, forms=[]),
    cell("kerple", "mamba2", "unimplemented", reason="Toeplitz: not yet", forms=[]),
]


@pytest.fixture
def grid():
    return drawn.arrange(CELLS)


class Table(HTMLParser):
    """Rows of (class, title, text); every tag and attribute seen."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([attrs.get("class"), attrs.get("title"), ""])
            self.open = tag

    def handle_endtag(self, tag):
        self.open = None if tag == self.open else self.open

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1][2] += data


def test_a_grid_is_in_order(grid):
    assert list(grid.classes) == ["GRP", "TOEP"] and grid.classes["GRP"] == ["rope", "yarn"]
    assert list(grid.families) == ["softmax", "linear"]
    assert grid.mixers == ["attention", "retention", "mamba2"]  # as the cells come
    assert dict(grid.counts()) == dict(native=6, partial=1, refused=1, unimplemented=1)
    assert dict(grid.of_class("GRP", "mamba2")) == dict(native=1, partial=1)


def test_every_scheme_is_named_beside_the_counts(grid):
    assert drawn.members(grid) == "GRP   rope, yarn\nTOEP  kerple"
    assert max(map(len, drawn.members(grid, 12).splitlines())) <= 12


def test_the_page_needs_nothing_else(grid):
    page = drawn.html(grid, "v1")
    table = Table(page)
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _ in table.tags)
    assert not any(key in attrs for _, attrs in table.tags for key in ("src", "href"))
    assert "url(" not in page and "@import" not in page and "://" not in page


def test_the_page_shows_every_cell_with_its_reason(grid):
    page = drawn.html(grid, "v1")
    rows = {row[0][2]: row for row in Table(page).rows}
    assert {len(row) for row in rows.values() if row[0][2] in ("rope", "yarn", "kerple")} == {4}
    at = dict(zip(grid.mixers, range(1, 4)))
    kind, title, sign = rows["kerple"][at["retention"]]
    assert kind.split()[0] == "refused" and sign == "-"
    assert title == f"kerple on retention: refused (R3)\n{REASON}"
    assert "<state>" not in page  # escaped
    assert rows["kerple"][at["mamba2"]][0].split()[0] == "unimplemented"
    kind, title, sign = rows["yarn"][at["mamba2"]]
    assert sign == "o" and "no chunked form: Rotation: R2 not there" in title
    assert "note: Rotation: R6 absorbed" in rows["yarn"][at["attention"]][1]
    assert rows["GRP (2)"][at["retention"]][2] == "+" and rows["GRP (2)"][at["mamba2"]][2] == "1"
    assert "GRP on mamba2: 1 native, 1 partial" in rows["GRP (2)"][at["mamba2"]][1]
    for told in ("6 native", "1 partial", "1 refused", "1 unimplemented", "3 schemes by 3 mixers"):
        assert told in page


def test_text_by_class_and_by_scheme(grid):
    lines = drawn.by_class(grid).splitlines()
    assert lines[0].split() == ["GRP", "2", "TOEP", "1"] and len(lines) == 4
    mamba = next(line for line in lines if "mamba2" in line)
    assert "1+ 1o" in mamba and mamba.endswith("?")
    assert next(line for line in lines if "retention" in line).split()[-2:] == ["+", "-"]
    text = drawn.by_scheme(grid).splitlines()
    kerple = next(line for line in text if line.startswith("kerple"))
    signs = dict(zip(grid.mixers, kerple.split(None, 1)[1].replace(" ", "")))
    assert signs == dict(attention="+", retention="-", mamba2="?")
    # The names above, read downwards, are the mixers.
    column = max(map(len, text[:9]))
    down = ["".join(line.ljust(column)[n] for line in text[:9]).strip() for n in range(column)]
    assert [name for name in down if name] == grid.mixers


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    from lcx.mixers import matrix

    monkeypatch.setattr(matrix, "cells", lambda schemes, mixers: [
        cell for cell in CELLS if cell["position"] in schemes and cell["mixer"] in mixers])
    assert main(["matrix", "--html", str(tmp_path / "m.html")]) == 0
    assert (tmp_path / "m.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert main(["matrix", "--mixer", "retention"]) == 0
    shown = capsys.readouterr().out
    assert REASON in shown and "+ native: 2, o partial: 0, - refused: 1" in shown
    assert main(["matrix"]) == 0
    assert "? unimplemented: 1" in capsys.readouterr().out
    assert main(["matrix", "--html", str(tmp_path / "none" / "m.html")]) == 2
    assert "none" in capsys.readouterr().err
