"""Records, arms, tables, figures and the page, on made-up rows."""

import json
import math
import re
import sys
import zlib

import pytest

from lcx.errors import ConfigError, DataError
from lcx.eval.rows import FIELDS
from lcx.study import export, records
from lcx.study.arms import Arm, curves
from lcx.study.caveats import warn
from lcx.study.distinct import distinguish
from lcx.study.figures import styles
from lcx.study.page import summary
from lcx.study.report import report
from lcx.study.tables import by_length, fairness, text

L, LENGTHS = 128, (32, 64, 96, 128, 256, 512, 1024)
BLOW_UP = {"rope": 0.9, "sinusoidal": 1.2, "no_pe": 0.35, "alibi": -0.02}


def make(position, mixer, seed, length, metric="bpb", method="same_target", **fields):
    """A row as `lcx.eval` writes it."""
    run = f"{zlib.crc32(repr((position, mixer, seed)).encode()):010x}"
    extra = {"status": "ok", "targets": "t0", "arm": f"{position}{mixer}", "block": 32,
             **fields.pop("extra", {})}
    row = dict(run=run, position=position, mixer=mixer, train_length=L, length=length,
               metric=metric, method=method, value=1.0, low=None, high=None, seed=seed,
               documents=40, tokens=8192, parameters=820_000, flops_per_token=1_640_000,
               state_size=65_536, train_tokens=1_000_000, learning_rate=0.003,
               learning_rate_tuned=True, code_version="v0.1-3", dirty=False, config_hash=run,
               checkpoint_step=300, extra=extra)
    return {**row, **fields}


def study(seeds=(0,), mixers=("attention", "rglru"), positions=tuple(BLOW_UP)):
    """Rows of a small study in which RoPE and sinusoidal rise past L and ALiBi does not."""
    rows = [make("rope", "attention", 0, 0, method="unigram", value=4.83, low=4.7, high=4.9)]
    for mixer in mixers:
        for position in positions:
            for seed in seeds:
                at_l = 2.6 + 0.1 * (mixer == "rglru")
                for c in LENGTHS:
                    past = max(0.0, math.log2(c / L))
                    rise = BLOW_UP.get(position, 0.1) * past * (0.3 if mixer == "rglru" else 1.0)
                    value = at_l - 0.08 * math.log2(min(c, L) / L) + rise + 0.02 * seed
                    rows.append(make(position, mixer, seed, c, value=value, low=value - 0.05,
                                     high=value + 0.05))
                    rows.append(make(position, mixer, seed, c, "perplexity", value=2**value))
                    rows.append(make(position, mixer, seed, c, "bpb_gap", value=value - at_l,
                                     low=value - at_l - 0.01, high=value - at_l + 0.01))
                for k, p in enumerate(sorted({round(2 ** (k / 2)) for k in range(20)})):
                    value = 2.4 - 0.05 * k + max(0, math.log2(p / L)) * BLOW_UP.get(position, 0.1)
                    rows.append(make(position, mixer, seed, p, "nll", "position_curve",
                                     value=value, low=value - 0.04, high=value + 0.04))
                rows.append(make(position, mixer, seed, 1024, "stable_length", value=1024.0,
                                 extra={"at_least": True}))
    return rows


def write(folder, rows):
    for run in {row["run"] for row in rows}:
        records.append(folder / run / "rows.jsonl", [row for row in rows if row["run"] == run])
    return folder


def test_rows_come_back_as_they_went(tmp_path):
    rows = study()
    write(tmp_path, rows)
    assert sorted(map(json.dumps, records.read(tmp_path))) == sorted(map(json.dumps, rows))
    assert list(records.read(tmp_path)[0]) == list(FIELDS)


def test_a_torn_tail_is_set_aside_and_said(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    first, second = make("rope", "attention", 0, 128), make("rope", "attention", 0, 256)
    records.append(path, [first])
    with open(path, "a") as file:
        file.write('{"run": "to')
    assert records.read(path) == [first] and "rows.jsonl:2" in caplog.text
    records.append(path, [second])
    assert records.read(path) == [first, second]
    assert (tmp_path / "rows.jsonl.torn").read_text() == '{"run": "to\n'


def test_the_last_measurement_of_a_cell_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    for value in (2.0, 3.0):
        records.append(path, [make("rope", "attention", 0, 128, value=value)])
    records.append(path, [make("rope", "attention", 0, 128, config_hash="other", value=4.0)])
    assert [row["value"] for row in records.read(path)] == [3.0, 4.0]


def test_bad_rows_are_refused_and_nothing_is_written(tmp_path):
    path, good = tmp_path / "rows.jsonl", make("rope", "attention", 0, 128)
    for bad, message in (({**good, "lenght": 3}, "did you mean 'length'"),
                         ({**good, "value": math.nan}, "NaN"),
                         ({k: v for k, v in good.items() if k != "seed"}, "missing: seed")):
        with pytest.raises(ConfigError, match=message):
            records.append(path, [good, bad])
    assert not path.exists()
    with pytest.raises(DataError, match="lcx sweep"):
        records.read(tmp_path)


def test_seeds_have_a_t_interval_and_documents_their_own(tmp_path):
    rows = [make("rope", "attention", s, 128, value=2.0 + s, low=1.0, high=4.0) for s in range(3)]
    (point,) = curves(rows, "bpb")[Arm("attention", "rope")]
    # Student's t with 2 degrees of freedom: 4.3027 x 1 / sqrt(3).
    assert point.estimate.value == 3.0
    assert point.estimate.high - 3.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert (point.low, point.high, point.seeds) == (1.0, 4.0, (2.0, 3.0, 4.0))
    (single,) = curves(rows[:1], "bpb")[Arm("attention", "rope")]
    assert (single.estimate.low, single.estimate.high) == (1.0, 4.0)


def test_one_bad_seed_empties_the_cell():
    rows = [make("rope", "attention", 0, 128, value=2.0),
            make("rope", "attention", 1, 128, value=None, extra={"status": "oom"})]
    (point,) = curves(rows, "bpb")[Arm("attention", "rope")]
    assert point.estimate is None and point.status == "oom"
    assert "oom" in text(by_length(rows))


def test_the_table_ranks_by_the_longest_context_with_the_unigram_beneath():
    header, body = by_length(study(mixers=("attention",)))
    assert header == ["arm", "32", "64", "96", "128*", "256", "512", "1024", "rise", "G(1024)",
                      "verdict"]
    assert [line[0] for line in body] == ["alibi, attention", "no_pe, attention",
                                          "rope, attention", "sinusoidal, attention",
                                          "unigram (no context)"]
    # 96 + the block of 32 is the train length: the rise is against 2.633.
    assert body[2][7:] == ["5.300", "+2.667", "+2.700", "higher"] and body[4][1] == "4.830"
    assert body[0][10] == "lower"
    _, body = by_length(study(mixers=("attention",), positions=("abacus", "alibi")))
    assert [line[0] for line in body[:2]] == ["alibi, attention", "abacus, attention"]


def test_arms_that_differ_in_more_than_the_seed_are_not_averaged():
    rows = [make("rope", "attention", 0, 128, value=2.0, extra={"arm": "aaaa1"}),
            make("rope", "attention", 1, 128, value=4.0, extra={"arm": "bbbb2"})]
    labels = {arm.label(): points[0].estimate.value
              for arm, points in curves(distinguish(rows), "bpb").items()}
    assert labels == {"rope, attention, #aaaa": 2.0, "rope, attention, #bbbb": 4.0}


@pytest.mark.parametrize(("changes", "message"), [
    ({"code_version": "v0.2"}, "different versions of the code"),
    ({"dirty": True}, "different versions"),
    ({"extra": {"trained_with": "v0.0"}}, "v0.1-3, trained with v0.0"),
    ({"train_tokens": 2_000_000}, "different numbers of training tokens"),
    ({"learning_rate_tuned": False}, "not tuned"),
    ({"train_length": 256}, "different lengths"),
    ({"extra": {"targets": "other"}}, "different target tokens"),
    ({"value": None, "extra": {"status": "oom"}}, "Without a value: alibi, attention at 128: oom"),
])
def test_what_makes_a_comparison_unfair_is_said(changes, message):
    fair = make("rope", "attention", 0, 128)
    assert warn([fair, make("alibi", "attention", 0, 128)]) == []
    assert message in " ".join(warn([fair, make("alibi", "attention", 0, 128, **changes)]))


def test_seeds_that_saw_a_few_tokens_more_are_alike():
    assert warn([make("rope", "attention", 0, 128), make("rope", "attention", 1, 128,
                                                         train_tokens=1_000_100)]) == []


def test_the_fairness_table_has_every_field():
    header, body = fairness(study(seeds=(0, 1), mixers=("attention",)))
    line = dict(zip(header, body[0]))
    assert line["parameters"] == "820,000" and line["learning rate"] == "0.003"
    assert line["seeds"] == "0, 1" and line["documents"] == "40" and line["code"] == "v0.1-3"


def test_every_arm_looks_different():
    names = [Arm(mixer, f"p{i}") for mixer in ("attention", "rglru", "lstm") for i in range(20)]
    looks = styles(names)
    assert len({tuple(map(str, look.values())) for look in looks.values()}) == len(names)
    points = [{**look, "linestyle": "none"} for look in looks.values()]  # of the trade-off
    assert len({tuple(map(str, look.values())) for look in points}) == len(names)


def test_the_summary_names_who_holds_up_and_who_rises_most():
    rows = study(mixers=("attention",))
    text_of = summary(rows)
    assert "Trained at length 128 and tested with up to 1024" in text_of
    assert "1 of 4 arms hold up" in text_of and "alibi, attention (2.54 bits per byte)" in text_of
    assert "sinusoidal, attention rises most: by 3.57, to 6.20." in text_of
    worse = [row for row in rows if row["position"] != "alibi"]
    assert "no arm is sure to hold up" in summary(worse)
    inside = [row for row in rows if row["length"] <= 128]
    assert summary(inside) == "No length beyond the train length was measured yet."


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A report of a study with a failed member, written twice."""
    pytest.importorskip("matplotlib")
    folder = write(tmp_path_factory.mktemp("study"), study(seeds=(0, 1)))
    run = next(path for path in folder.iterdir())
    (run / "config.json").write_text('{"experiment": {"seed": "<b>"}}')
    (folder / "sweep.json").write_text(json.dumps({
        "command": "lcx sweep quick.py --config.experiment.seed=1",
        "members": [dict(run="dead", position="rope", mixer="mla", seed=0, state="failed",
                         error="its process ended")]}))
    return report(folder), report(folder, out=folder / "again")


def test_the_page_stands_alone_and_says_it_all(done):
    html = done[0].page.read_text()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
    assert "src=" not in html and "@import" not in html
    assert "<b>" not in html  # a config is text, not markup
    assert html.count("<svg") == 7 and "lcx sweep quick.py" in html
    assert "1 of 1 runs are not in this report" in html
    for path in re.findall(r'href="([^"#]+)"', html):
        assert (done[0].page.parent / path).is_file()


def test_each_number_is_one_click_from_its_row_and_config(done):
    html = done[0].page.read_text()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    # bpb of RoPE at 1024 in the main table leads to a row that holds the same number.
    link = re.search(r'href="#([^"]+)" title="rope, attention: bpb, same_target, 1024 tokens of '
                     r'context; 95% Student.{1,6}s t over 2 seeds">5.310</a>', html)
    row = re.search(f'<tr id="{link[1]}">.*?</tr>', html, re.S)[0]
    assert "same_target" in row and "5.300 [5.250, 5.350]" in row
    section = html[html.index(link[1].rsplit("-bpb", 1)[0] + '">'):]
    assert section.index("runs (seeds)") < section.index(link[1])


def test_figures_keep_their_command_and_config_hash(done):
    assert {path.suffix for path in done[0].figures} == {".svg", ".pdf", ".png"}
    stamp = re.search(r"lcx report \S+ \| configs [0-9a-f]{10} \| code v0.1-3",
                      done[0].page.read_text())[0]
    for path in done[0].figures:
        if path.suffix != ".pdf":
            assert stamp.encode() in path.read_bytes(), path
        if path.suffix == ".svg":
            about = re.search("<dc:description>(.*?)</dc:description>", path.read_text(), re.S)
            assert stamp in about[1]
    assert done[0].figures[0].read_bytes() == done[1].figures[0].read_bytes()


def test_rows_lie_beside_the_page(done):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    read = {path.name: path for path in done[0].files}
    rows = records.read(done[0].page.parent.parent)
    # As text: some versions of pandas read a number of a CSV off by a bit.
    csv = pandas.read_csv(read["rows.csv"], dtype={"value": str})
    parquet = pandas.read_parquet(read["rows.parquet"])
    assert list(csv.columns) == list(parquet.columns) == ["arm", *FIELDS]
    for table in (csv, parquet):
        assert [float(value) for value in table["value"]] == [row["value"] for row in rows]
        assert table["run"].tolist() == [row["run"] for row in rows]
        assert [json.loads(extra) for extra in table["extra"]] == [row["extra"] for row in rows]
    assert set(csv["arm"]) == {f"{p}, {m}" for p in BLOW_UP for m in ("attention", "rglru")}


def test_without_pyarrow_there_is_csv_and_a_hint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_text("of older rows")
    files, hint = export.write(study(mixers=("attention",)), tmp_path)
    assert [path.name for path in files] == ["rows.csv"] and "pip install lcx[report]" in hint
    assert not (tmp_path / "rows.parquet").exists()


def test_code_versions_are_not_mixed_unless_it_is_said(tmp_path):
    pytest.importorskip("matplotlib")
    rows = study(mixers=("attention",), positions=("rope", "alibi"))
    newer = [{**row, "code_version": "v0.2"} for row in rows if row["position"] == "alibi"]
    write(tmp_path, newer + [row for row in rows if row["position"] == "rope"])
    with pytest.raises(ConfigError, match=r"v0.1-3: 1 runs .*v0.2: 1 runs .*--mix-versions"):
        report(tmp_path)
    assert not (tmp_path / "report").exists()
    done = report(tmp_path, mix_versions=True)
    assert "different versions of the code" in done.page.read_text()
    assert "--mix-versions | configs" in done.page.read_text()


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, study())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install lcx\[report\]"):
        report(tmp_path)
    assert not (tmp_path / "report").exists()
