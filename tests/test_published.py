"""Published results: the data that ship, what is refused, averages that must follow, and their place on the board."""

import json
import re

import pytest
import yaml
from test_leaderboard_page import board_of, document_of, example, page_of

from bench.board import papers
from bench.board.build import build, validate
from bench.board.markdown import markdown
from bench.board.published.load import COLUMNS_FILE, FOLDER, PROTOCOLS, READ, load_columns, load_tables, published
from bench.core.errors import BadDataError, CorruptFileError, OptionError, UnknownNameError
from eval.protocols import base as protocols

TABLES = {table.name: table for table in published()}
GOOD = {
    "title": "T", "dataset": "nsd", "protocol": "mindeye2", "kind": "main", "source": "paper, Table 1", "read": "read",
    "columns": ["pixcorr", "clip"], "percent": ["clip"], "subjects": [1, 2], "test_images": 1000, "sessions": 40,
    "rows": [
        {"system": "a", "values": {"pixcorr": 0.3, "clip": 93.0}},
        {"system": "b", "values": {"pixcorr": 0.2}, "subjects": [1], "read": "secondary"},
    ],
}  # fmt: skip


def rows(table, system):
    return [row for row in TABLES[table].rows if row.system == system]


def write(folder, changes=None, name="good"):
    content = json.loads(json.dumps(GOOD))
    for place, value in (changes or {}).items():
        *path, last = place.split(".")
        target = content
        for part in path:
            target = target[int(part) if part.isdigit() else part]
        target[last] = value
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def load(folder):
    return load_tables(folder, load_columns(COLUMNS_FILE))


# -- The data ----------------------------------------------------------------------------------------------------------


def test_every_file_is_a_table_and_every_row_says_what_it_is():
    assert set(TABLES) == {path.stem for path in FOLDER.glob("*.yaml")}
    assert len(TABLES) > 20
    for table in TABLES.values():
        for row in table.rows:
            assert row.source
            assert row.read in READ
            assert row.protocol in PROTOCOLS
            assert set(row.values) <= {column.name for column in table.columns}


@pytest.mark.parametrize("name", sorted(set(protocols.names()) & set(PROTOCOLS)))
def test_columns_of_a_protocol_we_have_are_its_own(name):
    """A column of the same name is the same metric: it points the same way."""
    known = {metric.name: metric.higher_is_better for metric in protocols.find(name).metrics}
    used = {
        c.name: c.higher_is_better
        for t in TABLES.values()
        for r in t.rows
        if r.protocol == name
        for c in t.columns
        if c.name in r.values
    }
    assert used
    assert {column: known[column] for column in used if column in known} == {
        c: w for c, w in used.items() if c in known
    }
    # Regions of brain correlation, errors of latents, and what Takagi's row on the slides calls Alex(2), are not ours.
    allowed = {column for column in used if column.startswith("brain-") or column.endswith("-mse")}
    assert set(used) - set(known) - allowed <= ({"alex2"} if name == "takagi" else set())


def test_tables_a_and_b_stay_apart():
    a, b = TABLES["nsd-mindeye2"], TABLES["nsd-old"]
    assert {(row.test_images, row.sessions) for row in a.rows} == {(1000, 40)}
    (moved,) = [row for row in b.rows if (row.test_images, row.sessions) != (982, 37)]
    assert (moved.system, moved.protocol) == ("MindEye2", "mindeye2")
    own, again = rows("nsd-old", "Brain-Diffuser")[0], rows("nsd-mindeye2", "Brain-Diffuser")[0]
    assert (own.values["effnet"], again.values["effnet"]) == (0.775, 0.728)
    assert own.protocol == "brain-diffuser"


@pytest.mark.parametrize(
    ("table", "system", "parts"),
    [
        ("nsd-old", "WeADL, ridge regression (RR)", "nsd-old-weadl-by-subject"),
        ("nsd-mindeye2", "MindEye2", "nsd-mindeye2-by-subject"),
    ],
)
def test_averages_follow_from_the_rows_of_the_subjects(table, system, parts):
    (mean,) = rows(table, system)
    each = rows(parts, system)
    assert [row.subjects for row in each] == [(1,), (2,), (5,), (7,)]
    for column, value in mean.values.items():
        assert value == pytest.approx(sum(row.values[column] for row in each) / 4, abs=0.00051), column


def test_corrections_are_visible_and_right():
    found = {(t.name, r.system, c.column): (r, c) for t in TABLES.values() for r in t.rows for c in r.corrections}
    assert set(found) == {
        ("nsd-old", "WeADL, ridge regression (RR)", "effnet"),
        ("nsd-old", "MindEye2", "swav"),
    }
    row, fix = found["nsd-old", "WeADL, ridge regression (RR)", "effnet"]
    assert (row.values["effnet"], fix.printed) == (0.762, 0.744)
    mean = sum(r.values["effnet"] for r in TABLES["nsd-old-weadl-by-subject"].rows) / 4
    assert abs(mean - 0.762) < 0.0005 < abs(mean - 0.744)
    row, fix = found["nsd-old", "MindEye2", "swav"]
    assert fix.printed == 0.333
    assert row.values["swav"] == rows("nsd-mindeye2", "MindEye2")[0].values["swav"] == 0.344


@pytest.mark.parametrize(
    ("column", "system", "value"),
    [
        ("pixcorr", "ROITok, IP-Adapter", 0.475), ("alex2", "Brain-IT", 0.984), ("alex5", "Brain-IT", 0.995),
        ("inception", "Brain-IT", 0.973), ("clip", "NeuroSwift", 0.971), ("effnet", "Brain-IT", 0.564),
        ("swav", "Brain-IT", 0.320), ("ssim", "MindEye2, low-level only", 0.539),
    ],
)  # fmt: skip
def test_best_published_values(column, system, value):
    """The best of table A by metric, as they are quoted elsewhere: a value in the wrong column would show here."""
    table = TABLES["nsd-mindeye2"]
    (better,) = {c.higher_is_better for c in table.columns if c.name == column}
    having = [row for row in table.rows if column in row.values]
    best = (max if better else min)(having, key=lambda row: row.values[column])
    assert (best.system, best.values[column]) == (system, value)


def test_the_full_model_of_cnd_s_ablation_is_its_row_of_subject_1():
    (full,) = [row for row in TABLES["god-cnd-ablation"].rows if row.setting.startswith("10:")]
    (main,) = [row for row in rows("god-nway", "CnD") if row.subjects == (1,)]
    assert full.values["50-way"] == main.values["50-way"] == 0.105


# -- What is refused ---------------------------------------------------------------------------------------------------


def test_rows_take_what_their_file_says_unless_they_say_otherwise(tmp_path):
    write(tmp_path)
    (table,) = load(tmp_path)
    a, b = table.rows
    assert (a.subjects, a.read, a.source, a.sessions) == ((1, 2), "read", "paper, Table 1", 40)
    assert (b.subjects, b.read, b.test_images) == ((1,), "secondary", 1000)
    assert (a.values["clip"], a.values["pixcorr"]) == (0.93, 0.3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"percent": []}, BadDataError, r"row 1 \(a\): clip is 93, allowed are 0 to 1"),
        ({"rows.0.values.pixcorr": 1.5}, BadDataError, "pixcorr is 1.5, allowed are -1 to 1"),
        ({"rows.0.values.pixcorr": float("nan")}, BadDataError, "pixcorr is nan"),
        ({"rows.0.values.clap": 0.5}, UnknownNameError, "unknown column 'clap'.*'clip'"),
        ({"columns": ["pixcor", "clip"]}, UnknownNameError, "unknown column 'pixcor'.*'pixcorr'"),
        ({"columns": ["pixcorr", "clip", "ssim"]}, BadDataError, r"empty: \['ssim'\]"),
        ({"protocol": "mindeye3"}, UnknownNameError, "unknown protocol 'mindeye3'"),
        ({"rows.1.protocol": "mine"}, UnknownNameError, r"unknown protocol 'mine' in good.yaml, row 2"),
        ({"kind": "mian"}, UnknownNameError, "unknown kind of table 'mian'.*'main'"),
        ({"read": "guessed"}, OptionError, "read"),
        ({"rows.0.value": 1}, UnknownNameError, "unknown option 'value'"),
        ({"rows.0.values": {}}, BadDataError, "no values"),
        ({"rows.1": GOOD["rows"][0]}, BadDataError, "system 'a'  stands there twice"),
        ({"rows.0.subjects": [2, 1]}, BadDataError, "subjects are numbers from 1, ascending"),
        ({"rows.0.test_images": 0}, BadDataError, "0 test images"),
        ({"title": None}, OptionError, "title"),
        ({"rows.0.corrections": [{"column": "pixcorr", "printed": 0.3, "reason": "x"}]}, BadDataError, "changes no"),
        ({"rows.0.mean_of": "none"}, UnknownNameError, "unknown table 'none'"),
        ({"rows.0.mean_of": "good"}, UnknownNameError, "unknown table 'good'"),
    ],
)
def test_bad_tables_are_refused(tmp_path, changes, error, message):
    write(tmp_path, {place: value for place, value in changes.items() if place != "rows.1"})
    if "rows.1" in changes:
        content = json.loads(json.dumps(GOOD)) | {"rows": [GOOD["rows"][0]] * 2}
        (tmp_path / "good.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_a_mean_that_does_not_follow_is_refused(tmp_path):
    parts = [{"system": "a", "values": {"pixcorr": v, "clip": 93.0}, "subjects": [s]} for s, v in ((1, 0.2), (2, 0.4))]
    write(tmp_path, {"rows": parts}, "parts")
    write(tmp_path, {"rows.0.mean_of": "parts"})
    assert len(load(tmp_path)) == 2
    write(tmp_path, {"rows.0.mean_of": "parts", "rows.0.values.pixcorr": 0.31})
    with pytest.raises(BadDataError, match=r"good, a: pixcorr is 0.31, but the mean of parts is 0.3000"):
        load(tmp_path)


# -- On the board ------------------------------------------------------------------------------------------------------


def test_the_board_holds_every_row_and_no_rank():
    board = build([], {})
    assert sum(len(table["rows"]) for table in board["published"]) == sum(len(t.rows) for t in TABLES.values())
    row = board["published"][0]["rows"][0]
    assert {"source", "read", "protocol", "subjects", "test_images", "sessions", "deviations"} <= set(row)
    assert "rank" not in row
    row["rank"] = 1
    with pytest.raises(CorruptFileError, match=r"published\[0\]\.rows\[0\]"):
        validate(board, "leaderboard.json")


@pytest.mark.parametrize(
    ("value", "kind", "decimals", "expected"),
    [(0.41, "pixel", 3, "0.410"), (0.9782, "identification", 2, "97.82%"), (None, "pixel", 3, "–"),  # noqa: RUF001
     (45.4, "points", 2, "45.40")],
)  # fmt: skip
def test_values_are_shown_with_the_digits_of_their_source(value, kind, decimals, expected):
    assert papers.shown(value, {"kind": kind, "decimals": decimals}) == expected


def test_markdown_has_the_main_tables_folded():
    text = markdown(build([], {}))
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "| Brain-Diffuser | 0.254 | 0.356 | 94.20% |" in folded
    assert "0.762 ~~0.744~~" in folded
    assert "0.344 ~~0.333~~" in folded
    assert "| ROITok, IP-Adapter | 0.475 |" in folded
    assert "hidden size 64" not in folded
    assert folded.count("### ") == sum(table.kind == "main" for table in TABLES.values())


@pytest.fixture(scope="module")
def document(browser, tmp_path_factory):
    """What a browser makes of a page with our rows and the published ones."""
    page = tmp_path_factory.mktemp("page") / "leaderboard.html"
    page.write_text(page_of(board_of(example())))
    return document_of(browser, page)


def test_browser_draws_published_rows_apart_and_folded(document):
    shown = document[: document.index('<script type="application/json"')]
    place = shown.index('<section id="published">')
    assert shown.index('id="scores"') < place
    assert "<details><summary>" in shown[place : place + 100]  # folded: no attribute `open`
    assert shown[place:].count("<tr data-paper=") == sum(len(table.rows) for table in TABLES.values())
    assert "data-paper" not in shown[:place]
    assert re.search(r'<span class="fixed">0\.762</span><s>0\.744</s>', shown[place:])
    options = re.findall(
        r'<option value="([\w-]+)">', shown[shown.index('id="paper-protocol"') :].split("</select>")[0]
    )
    assert options[0] == "all"
    assert set(options[1:]) == {row.protocol for t in TABLES.values() for row in t.rows} | {
        table.protocol for table in TABLES.values()
    }


def test_browser_filters_published_rows_by_protocol(browser, tmp_path):
    page = tmp_path / "leaderboard.html"
    page.write_text(page_of(board_of(example())))
    browser.open(page.as_uri())
    browser.choose("paper-protocol", "nway-top1")
    found = browser.js("[...document.querySelectorAll('tr[data-paper]')].map((row) => row.dataset.paper)")
    expected = [table.name for table in published() for row in table.rows if row.protocol == "nway-top1"]
    assert found == expected
    assert set(found) == {"god-nway", "god-cnd-ablation", "god-mind-vis"}
