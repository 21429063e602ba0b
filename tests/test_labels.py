"""Labels are data: no text that a person may write breaks a figure, page, file or terminal."""

import ast
import csv
import html
import json
import logging
import os
import random
import re
import subprocess
import sys
import unicodedata
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import lcx
from lcx.cli import main
from lcx.config import apply, base_config, load, load_sweep
from lcx.errors import ConfigError
from lcx.labels import columns, cut, file_name, one_line, pad, show, visible, why_no_file_name
from lcx.study import records
from lcx.study.arms import arm_of, curves
from lcx.study.caveats import warn
from lcx.study.distinct import distinguish
from lcx.study.logs import set_up
from lcx.study.markup import escape
from lcx.study.names import WIDTH, Facts, names
from lcx.study.report import report
from lcx.study.run import _logged
from lcx.study.run_folder import folder_of
from tests.test_study_report import make

ROOT = Path(lcx.__file__).parent
NASTY = (
    "$\\frac{1$", "$x$", "\\$", "_hidden", "100% {0} %s \\textbf{x}", "two\nlines\r\tand a tab",
    "w" * 300, "W" * 60, "a\u200bb", "ab", "\u202egnp.exe\u2066", "\x1b[31mred\x1b[0m\x07\x00",
    "\x9b2J", "<script>alert(1)</script>", "\"'&--!>]]>", "\U0001f680 \u7edd\u5bf9 \u05e9\u05dc",
    "../../etc/passwd", "\ud800", "e\u0301", "a,b\";\n=1+1", "#3fa2", "over rope", "x=[1, {2",
)
HYBRID = "rglru/rglru/rglru/attention(num_kv_heads=1, window=64)"


def rows_of(labels, position="rope", mixer="attention"):
    """A run for each label, its bpb at three contexts."""
    found = []
    for number, label in enumerate(labels):
        for length in (32, 96, 128, 1024):
            for metric in ("bpb", "bpb_gap", "perplexity"):
                value = 2.0 + number / 100
                found.append(make(position, mixer, 0, length, metric, value=value, low=value - .1,
                                  high=value + .1, run=f"{number:010x}",
                                  config_hash=f"{number:010x}",
                                  extra={"arm": f"{number:04x}", "label": label}))
    return found


def nasty_rows():
    """All labels; a nasty option of a mixer; and a test-time override of nasty text."""
    rows = rows_of(NASTY)
    rows += [{**row, "run": f"m{row['run']}", "config_hash": f"m{row['run']}",
              "mixer": 'attention(mode="</pre>$_\x1b\n/+")', "position": "rope/alibi"}
             for row in rows_of(NASTY[:2])]
    tested = [{**row, "position": "yarn(factor=8.0)", "config_hash": "other",
               "extra": {**row["extra"], "arm": "yarn", "label": f"{NASTY[0]} over rope",
                         "override": {"experiment.model.position": {"$<b>": "\x1b"}}}}
              for row in rows if row["run"] == f"{0:010x}"]
    return rows + tested


class Page(HTMLParser):
    """Ids, links, tags and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.texts = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for key, value in attrs:
            self.ids += [value] if key == "id" else []
            self.links += [value] if key == "href" else []
            assert not key.startswith("on"), (tag, attrs)

    def handle_data(self, data):
        self.texts.append(data)


def acts(text, keep="\n"):
    """The characters of a text that no one sees, or that move others."""
    return [c for c in text if c not in keep and unicodedata.category(c)[0] in "CZ" and c != " "]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The report of nasty rows in a folder with a nasty name, every warning an error."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("study") / "$a_<b>\x1b[31m \u202e\n%s"
    rows = nasty_rows()
    for run in {row["run"] for row in rows}:
        records.append(folder / run / "rows.jsonl", [row for row in rows if row["run"] == run])
        (folder / run / "config.json").write_text(json.dumps(
            {"experiment": {"seed": 0}, "runtime": {"label": NASTY[0]}}))
    members = [dict(run=f"{n:010x}", position="rope", mixer=HYBRID, seed=0, label=label,
                    state="failed", error=f"line\n{label}") for n, label in enumerate(NASTY)]
    (folder / "sweep.json").write_text(json.dumps({"command": "lcx \x1b[2J<i>",
                                                   "members": members}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return report(folder), distinguish(records.read(folder)), folder


def labels_of(rows):
    return {arm_of(row).label() for row in rows}


def test_every_figure_is_drawn_and_holds_every_name(done):
    made, rows, _ = done
    files = {path.stem: path for path in made.figures if path.suffix == ".svg"}
    assert {"bpb", "ranked", "gap", "perplexity", "short_cost", "heatmap"} <= set(files)
    for path in made.figures:
        assert path.stat().st_size > 1000, path
    for stem, path in files.items():
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert not acts(text), stem
    # Text is drawn as paths, with itself in a comment.
    for stem in ("bpb", "short_cost"):
        svg = files[stem].read_text(encoding="utf-8")
        drawn = {html.unescape(text) for text in re.findall("<!-- (.*?) -->", svg, re.S)}
        for name in labels_of(rows):
            assert name in drawn or not name.isascii() or "--" in name, (stem, name)


def test_the_page_is_whole_and_nothing_in_it_acts(done):
    made, rows, folder = done
    text = made.page.read_text(encoding="utf-8")
    page = Page(text)
    assert not acts(text, keep="\n\t")
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "b" not in page.tags and "i" not in page.tags and text.count("<script>") == 1
    shown = "\0".join(page.texts)
    for name in labels_of(rows):
        assert name in shown, name
    for label in NASTY:  # the whole of it, in its arm's section
        assert visible(label, keep="\n\t") in shown, label
    assert len(re.findall("<summary>", text)) > len(labels_of(rows))


def test_the_tables_of_rows_are_read_again(done):
    made, rows, _ = done
    pandas = pytest.importorskip("pandas")
    path = {path.name: path for path in made.files}
    with open(path["rows.csv"], newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert {line["arm"] for line in table} == labels_of(rows)
    assert {json.loads(line["extra"])["label"] for line in table} >= set(NASTY)
    assert not any(acts(cell, keep="") for line in table for cell in line.values())
    if "rows.parquet" in path:
        assert set(pandas.read_parquet(path["rows.parquet"])["arm"]) == labels_of(rows)


def test_the_terminal_gets_lines_and_nothing_that_acts(done, capsys, monkeypatch):
    made, rows, folder = done
    monkeypatch.setattr("lcx.study.figures.PLOTS", ())
    assert main(["report", str(folder)]) == 0
    assert main(["status", str(folder)]) == 0
    out = capsys.readouterr().out
    assert not acts(out)
    for line in made.text.splitlines():
        assert columns(line) <= WIDTH + 9 * 12
    lines = [line for line in out.splitlines() if re.match(r"[0-9a-fm]{10,11} +waiting", line)]
    assert len(lines) == len({row["run"] for row in rows})
    assert len({columns(line[:line.index("rope")]) for line in lines if "rope" in line}) == 1
    assert main(["eval", "no\x1b[31m\nrun"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not acts(error)


def test_a_terminal_and_a_locale_of_ascii_get_all_of_it(tmp_path):
    pytest.importorskip("matplotlib")
    records.append(tmp_path / "a" / "rows.jsonl", rows_of(["\u00e9\u2013\U0001f680", "b"]))
    code = ("import sys; from lcx.cli import main; from lcx.study import figures\n"
            "figures.PLOTS = figures.PLOTS[:1]\nsys.exit(main(['report', sys.argv[1]]))")
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)], capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"\\xe9\\u2013\\U0001f680" in done.stdout
    for name in ("report.html", "rows.csv"):
        assert "\u00e9\u2013\U0001f680" in (tmp_path / "report" / name).read_text(encoding="utf-8")


def test_all_arms_have_names_of_their_own_that_fit(done):
    _, rows, _ = done
    known = {(arm_of(row), row["extra"]["arm"]): arm_of(row).label() for row in rows}
    assert len(known) == len(set(known.values())) == len(NASTY) + 2 + 1
    for arm, _ in known:
        for name in (arm.label(), arm.label(mixers=False), arm.mixer, arm.position):
            assert len(name) <= WIDTH and not acts(name, keep="") and name == one_line(name)


@pytest.mark.parametrize(("facts", "name"), [
    (Facts("rope", "attention"), "rope, attention"),
    (Facts("yarn(factor=8.0)", "attention"), "yarn x8, attention"),
    (Facts("randomized+yarn(beta=2.5, factor=4.0)", "mla"), "randomized+yarn x4(beta=2.5), mla"),
    (Facts("rope(base=1000000.0)", "attention(num_heads=2)"),
     "rope(base=1e6), attention(num_heads=2)"),
    (Facts("rope", HYBRID), "3x rglru + attention [rope]"),
    (Facts("rope", HYBRID, "small"), "3x rglru + attention [rope], small"),
    (Facts("no_pe/no_pe/no_pe/rope", HYBRID), "3x rglru [no_pe] + attention [rope]"),
    (Facts("no_pe", "mamba1/mamba1/attention/mamba1"), "2x mamba1 + attention + mamba1 [no_pe]"),
    (Facts("rope/rope/rope(base=500.0)", "attention"), "2x rope + rope(base=500), attention"),
    (Facts("rope/rope/no_pe", "attention(window=8)/attention(window=8)/attention"),
     "2x attention [rope] + attention [no_pe]"),
    (Facts("yarn(factor=8.0)", "attention", trained=("rope", "attention")),
     "rope, attention, tested as yarn x8"),
    (Facts("no_pe/no_pe/no_pe/yarn(factor=8.0)", HYBRID,
           trained=("no_pe/no_pe/no_pe/rope", HYBRID)),
     "3x rglru + attention, tested as yarn x8"),
    (Facts("rope/yarn(factor=8.0)", "mla", trained=("rope", "mla")),
     "rope, mla, tested as yarn x8 in layer 1"),
    (Facts("rope", "attention(window=64)", trained=("rope", "attention")),
     "rope, attention, tested as attention(window=64)"),
    (Facts("rope", "attention", trained=("rope", "attention"), tested="max_factor=32"),
     "rope, attention, tested with max_factor=32"),
])
def test_names(facts, name):
    assert names([facts])[facts].label() == name


def test_a_scheme_that_is_tested_as_another_has_its_own_place_on_the_axes():
    own, yarn = Facts("rope", "mla"), Facts("yarn(factor=8.0)", "mla", trained=("rope", "mla"))
    found = names([own, yarn, Facts("yarn(factor=8.0)", "mla")])
    assert found[yarn].position == found[yarn].label(mixers=False) == "rope, tested as yarn x8"
    assert [found[f].position for f in found] == ["rope", "rope, tested as yarn x8", "yarn x8"]


def test_options_are_said_where_they_tell_arms_apart():
    narrow, wide = (f"rglru/attention(num_kv_heads=1, window={w})" for w in (8, 64))
    alone = names([Facts("rope", narrow)])
    both = names([Facts("rope", narrow), Facts("rope", wide)])
    assert [arm.label() for arm in alone.values()] == ["rglru + attention [rope]"]
    assert [arm.mixer for arm in both.values()] == [
        "rglru + attention(num_kv_heads=1, window=8)",
        "rglru + attention(num_kv_heads=1, window=64)"]
    assert len({arm.label() for arm in both.values()}) == 2
    # Of other arms, and of their order, a name does not depend.
    more = names([Facts("alibi", "mla"), Facts("rope", "attention"), Facts("rope", narrow)])
    assert more[Facts("rope", narrow)] == alone[Facts("rope", narrow)]


def test_any_arms_have_short_names_that_are_distinct_in_any_order():
    draw = random.Random(0)
    texts = [*NASTY, "", "", "rope", "rope/no_pe", "yarn(factor=8.0)", "yarn(factor=8.5)", HYBRID,
             HYBRID.replace("64", "65"), HYBRID.replace("rglru", "lru"), "a(b=1)/" * 40 + "a(b=2)",
             "a(b=1)/" * 40 + "a(b=3)", "a(", ")/(", 'a(b="/")', "a(b=c, d)"]
    pick = lambda: draw.choice(texts)
    facts = list({Facts(pick(), pick(), pick(), draw.choice([("", ""), (pick(), pick())]), pick(),
                        draw.choice(["", "ab", "abc", "abcd1", "abcd2"])) for _ in range(400)})
    found = names(facts)
    for side in (lambda arm: arm.label(), lambda arm: (arm.mixer, arm.position, arm.note)):
        assert len({side(arm) for arm in found.values()}) == len(facts)
    for key, side in (("mixer", 1), ("position", 0)):
        wholes = {(getattr(f, key), f.trained[side] or getattr(f, key)): getattr(arm, key)
                  for f, arm in found.items()}
        assert len(set(wholes.values())) == len(wholes)
    assert max(len(name) for arm in found.values() for name in (
        arm.label(), arm.label(mixers=False), arm.mixer, arm.position, arm.note)) <= WIDTH
    draw.shuffle(facts)
    assert names(facts) == found and {f: a.label() for f, a in names(facts).items()} == {
        f: a.label() for f, a in found.items()}


def test_two_arms_of_one_short_hash_are_not_averaged():
    rows = [make("rope", "attention", 0, 128, value=2.0, extra={"arm": "aaaa1"}),
            make("rope", "attention", 1, 128, value=4.0, extra={"arm": "aaaa2"})]
    found = {arm.label(): points[0].estimate.value
             for arm, points in curves(distinguish(rows), "bpb").items()}
    assert found == {"rope, attention, #aaaa1": 2.0, "rope, attention, #aaaa2": 4.0}


def test_rows_of_before_are_named_and_stay_as_they_are():
    label = "pattern=[{'mixer': 'rglru'}, {'position': 'rope'}] overrides=[{'a.b': [1, 2]}] width=8"
    (row,) = rows_of([label], "no_pe/rope", "rglru/attention(window=64)")[:1]
    (named,) = distinguish([row])
    assert re.fullmatch(r"rglru \+ attention, overrides=#[0-9a-f]{4} width=8",
                        arm_of(named).label())
    assert {key: value for key, value in named.items() if key != "arm"} == row


def test_what_is_lost_is_said_by_name():
    rows = [{**row, "value": None, "extra": {**row["extra"], "status": "oom"}}
            for row in rows_of(["small"], "rope", HYBRID) if row["length"] == 128]
    members = [dict(run="dead", position="rope", mixer=HYBRID, seed=0, state="failed",
                    label="w" * 300)]
    told = " ".join(warn(distinguish(rows), members))
    assert "Without a value: 3x rglru + attention [rope], small at 128: oom" in told
    assert "attention(num_kv" not in told and "w" * 30 not in told


SWEEP = """
from lcx.config import base_config

def get_config(arg=None):
    return base_config()

def sweep(arg=None):
    layers = [dict(mixer="rglru")] * 3 + [{}]
    many = [{"experiment.model.position": dict(name="yarn", factor=2.0 * n)} for n in range(1, 11)]
    for seed in (0, 1):
        yield {"experiment.model.pattern": layers, "experiment.eval.overrides": many,
               "experiment.seed": seed}
    yield {"experiment.eval.overrides": many[:1], "experiment.model.pattern": layers}
    yield {"experiment.model.pattern": layers, "experiment.eval.seed": 3}
    for rate in (0.1, 0.2):
        yield {"experiment.train.optimizer": dict(name="adamw", learning_rate=rate)}
    yield {"runtime.label": "$x"}
    yield {"experiment.train.steps": 7, "runtime.label": "$x"}
"""


def test_members_of_a_sweep_have_short_names_of_their_own(tmp_path, capsys):
    file = tmp_path / "s.py"
    file.write_text(SWEEP)
    assert main(["sweep", str(file), "--list", f"--config.runtime.out={tmp_path}"]) == 0
    found = [line[23:] for line in capsys.readouterr().out.splitlines()]
    assert len(set(found)) == len(found) == 8
    for name, wanted in zip(found, (
            r"3x rglru \+ attention \[rope\], overrides=#[0-9a-f]{4}, seed 0",
            r"3x rglru \+ attention \[rope\], overrides=#[0-9a-f]{4}, seed 1",
            r"3x rglru \+ attention \[rope\], overrides=#[0-9a-f]{4}, seed 0",
            r"3x rglru \+ attention \[rope\], eval.seed=3, seed 0",
            r"rope, attention, adamw\(learning_rate=0.1\), seed 0",
            r"rope, attention, adamw\(learning_rate=0.2\), seed 0",
            r"rope, attention, \$x #[0-9a-f]{4,}, seed 0",
            r"rope, attention, \$x #[0-9a-f]{4,}, seed 0")):
        assert re.fullmatch(wanted, name), name


def test_what_no_one_sees_is_written_out():
    assert visible("a\x1b[1m\u200d\ud800\u3164\ufe0f") == \
        "a<U+001B>[1m<U+200D><U+D800><U+3164><U+FE0F>"
    assert visible("a\u00a0b\tc\nd", keep="\n\t") == "a b\tc\nd" and visible("\n") == "<U+000A>"
    assert one_line(" a \n\t b\r\n") == "a b" and one_line("e\u0301") == "\u00e9"
    assert escape("<a b=\"'\x00'\">\n") == "&lt;a b=&quot;&#x27;&lt;U+0000&gt;&#x27;&quot;&gt;\n"
    assert len({cut(f"{'a' * 30}{n}{'a' * 30}", 20) for n in range(9)}) == 9
    once = cut("a" * 99, 30)
    assert len(once) == 30 and cut(once, 20) == f"aaaaaa...aaaaa{once[-6:]}"
    assert [columns(text) for text in ("ab", "\u7edd\u5bf9", "e\u0301", "\U0001f680")] == [
        2, 4, 1, 2]
    assert pad("\u7edd", 4) == "\u7edd  " and pad("a", 3, right=True) == "  a"


def test_showing_never_fails(capsys):
    for text in NASTY:
        show(text)
    assert not acts(capsys.readouterr().out, keep="\n\t")


def test_no_line_of_a_log_acts(tmp_path, monkeypatch, capsys):
    logger = logging.getLogger("lcx")
    for name, value in (("handlers", []), ("propagate", True), ("level", logging.INFO)):
        monkeypatch.setattr(logger, name, value)
    set_up()
    with _logged(tmp_path) as write:
        for label in NASTY:
            logger.warning("of %s", label)
            write(f"raised by {label}")
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert not acts(text, keep="\n\t") and text.count("of ") >= len(NASTY)


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "..", ".", "a\\b", "x\n", "\x1b", "\u202e",
                                  "a\x00", "w" * 300, "\ud800"])
def test_a_study_is_one_folder(name):
    config = apply(base_config(), {"runtime.name": name})
    with pytest.raises(ConfigError, match="runtime.name=.* must be the name of one folder") as told:
        folder_of(config)
    assert not acts(str(told.value), keep="")
    assert why_no_file_name(file_name(name)) == ""


def test_the_argument_of_a_config_is_no_path(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("from lcx.config import base_config\ndef get_config(arg=None):\n"
                    "    return base_config()\n")
    out = [f"runtime.out={tmp_path / 'runs'}"]
    for argument in ("../../x", "/data/books", "w" * 300, "a\nb", "\u7edd\u5bf9" * 60):
        folder = folder_of(load(f"{file}:{argument}", out))
        assert folder.parent.parent == tmp_path / "runs", argument
        folder.mkdir(parents=True)
    names_of = {load(f"{file}:{argument}").runtime.name for argument in ("a/b", "a-b", "a\\b")}
    assert len(names_of) == 3
    for overrides in (["runtime.name="], {"runtime.name": ""}):
        assert load(f"{file}:full", overrides).runtime.name == "c-full"
    ((_, member),) = load_sweep(str(file), ["runtime.name="])
    assert member.runtime.name == "c"
    for argument in ("full", "mqar,attention", "a=b c", "\u00e9", "A.b_2"):  # as it was
        assert load(f"{file}:{argument}").runtime.name == f"c-{argument}"


def called(path):
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)]


SHOWN = {"text": 2, "annotate": 0, "set_title": 0, "suptitle": 0, "supxlabel": 0, "supylabel": 0,
         "set_xlabel": 0, "set_ylabel": 0, "set_xticks": 1, "set_yticks": 1, "set_text": 0,
         "set_xticklabels": 0, "set_yticklabels": 0}
FIGURES = [path for path in sorted(ROOT.rglob("*.py"))
           if re.search(r"^ *(import|from) matplotlib", path.read_text(encoding="utf-8"), re.M)
           or path.parent.name == "figures"]


def safe(node, known):
    """Whether a text is a constant, or comes from `words`."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "words"
    if isinstance(node, (ast.List, ast.Tuple)):
        return all(safe(item, known) for item in node.elts)
    if isinstance(node, ast.ListComp):
        return safe(node.elt, known)
    return isinstance(node, ast.Name) and node.id in known


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_in_figures_goes_through_words(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    given = {}  # every name, and whether all that it is given comes from `words`
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            given.setdefault(node.targets[0].id, []).append(node.value)
    known = {name for name, values in given.items() if all(safe(v, ()) for v in values)}
    if path.name == "canvas.py":
        known |= {"name"}  # of `_name`, whose caller is here
        assert "[(words(name), handle) for name, handle in plot.legend()]" in path.read_text()
    for node in called(path):
        attribute = getattr(node.func, "attr", "")
        assert not any(word.arg in ("label", "labels") for word in node.keywords), ast.unparse(node)
        place = SHOWN.get(attribute)
        if place is not None and len(node.args) > place:
            assert safe(node.args[place], known), ast.unparse(node)


def test_nothing_prints_but_show():
    for path in sorted(ROOT.rglob("*.py")):
        for node in called(path):
            if isinstance(node.func, ast.Name) and node.func.id == "print":
                assert path.name in ("progress.py", "worker.py"), ast.unparse(node)  # numbers, JSON
            if ast.unparse(node.func) in ("sys.stdout.write", "sys.stderr.write"):
                assert path.parent.name == "cli" and path.name in (
                    "arguments.py", "status.py", "generate.py"), ast.unparse(node)


def test_html_has_one_way_to_escape():
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "html.escape(" not in text or path.name == "markup.py"
