"""The leaderboard as files: Markdown, terminal, the page in a real browser, the stage's command line."""

import dataclasses
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from board_records import COLUMNS, controls, draw, protocol, scored
from PIL import Image
from rich.console import Console

from bench.board import gallery as pictures
from bench.board.build import build
from bench.board.gallery import Item
from bench.board.html import html as page_of
from bench.board.markdown import markdown
from bench.board.terminal import print_table
from bench.core.errors import BadDataError, CorruptFileError
from bench.core.storage import Folder
from bench.leaderboard import build_board, check_board, main
from bench.records.parts import Failure, Finding
from bench.records.record import write_record

GOLDEN = Path(__file__).parent / "golden" / "leaderboard.md"
HOSTILE = '<script>document.title="owned"</script>|</script><img src=x onerror=alert(1)> & {{script}} [x](y) *b*'


def example(name="tiny-ridge"):
    """Three systems, a leaky one, a failed one, an untrained table and all controls."""
    columns = tuple(dataclasses.replace(c, kind="identification" if "2-way" in c.label else "pixel") for c in COLUMNS)
    rules = protocol(columns, summary="Scores of procedural scenes.")
    untrained = protocol(columns, name="mindeye2", untrained=True, weights={})
    finding = Finding("overlap", "3 test images were trained on", {"stimuli": [4, 5, 6]})
    pairs = [
        *(
            scored(n, draw(q, seed=i), rules=rules)
            for i, (n, q) in enumerate(((name, 0.5), ("mlp", 0.7), ("gcn", 0.3)))
        ),
        scored("leaky", draw(0.9, seed=7), rules=rules, leakage=(finding,)),
        *controls(rules=rules),
        scored("mlp", draw(0.7), rules=untrained),
        *controls(rules=untrained),
    ]
    failed, _ = scored("braid", draw(0.5), rules=rules)
    error = Failure("BadDataError", "the mask has no voxels", "prepare")
    failed = dataclasses.replace(failed, status="failed", error=error, metrics={}, per_subject={}, samples=None)
    return [*pairs, (failed, None)]


def board_of(pairs):
    return build([record for record, _ in pairs], {record.id: samples for record, samples in pairs if samples})


def write_all(runs, pairs):
    for record, samples in pairs:
        write_record(Folder.at(runs) / "scores" / record.id, record, samples)


def png(level):
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(content, "PNG")
    return content.getvalue()


def items(pairs):
    systems = [record.id for record, samples in pairs if samples]
    return [Item(s, 70 + s, "a red ball", png(40 * s), {record: png(90) for record in systems}) for s in (2, 1)]


class Elements(html.parser.HTMLParser):
    """Collects what a browser would see as markup."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]


# -- Markdown and terminal ---------------------------------------------------------------------------------------------


def test_markdown_is_the_golden_file():
    """To accept a change on purpose: `python tests/test_leaderboard_page.py` writes the file anew."""
    assert markdown(board_of(example())) == GOLDEN.read_text()


def test_markdown_shows_hostile_names_letter_by_letter():
    text = markdown(board_of(example(HOSTILE)))
    own = [
        line for line in text.splitlines() if not re.fullmatch(r"<details><summary>[^<>]*</summary>|</details>", line)
    ]
    assert "<" not in "".join(own).replace("\\<", "")
    assert "\\<script\\>document.title=" in text
    tables = [line for line in text.splitlines() if line.startswith("| ") and "document" in line]
    assert tables
    plain = [line for line in text.splitlines() if line.startswith("| ") and "**gcn**" in line]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in [*tables[:1], *plain[:1]]}
    assert len(bars) == 1  # the name's own bar opens no cell


def test_markdown_of_names_with_line_breaks_keeps_its_rows():
    text = markdown(board_of(example("two\nlines | here")))
    assert "| 2 | **two lines \\| here** |" in text


def terminal(board, **options):
    screen = Console(file=io.StringIO(), **options)
    print_table(board, screen)
    return screen.file.getvalue()


def test_terminal_prints_every_row_in_full_into_a_log():
    board = board_of(example())
    text = terminal(board, force_terminal=False, width=40)
    assert "…" not in text
    for row in board["tables"][0]["rows"]:
        assert re.search(rf"{re.escape(row['name'])} +{row['metrics']['pixcorr']['value']:.3f}", text), row["name"]
    assert "mlp is better than mean image on 5 of 5 metrics" in text
    assert "not competing: braid (failed): BadDataError in prepare: the mask has no voxels" in text
    assert "numbers say nothing about quality" in " ".join(text.split())


def test_terminal_fits_a_narrow_screen_and_reads_no_markup():
    text = terminal(board_of(example("[red]bold[/red]")), force_terminal=True, color_system=None, width=70)
    assert max(len(line) for line in text.splitlines() if "0." in line) <= 70
    assert "[red]bol" in text


# -- The page ----------------------------------------------------------------------------------------------------------


def test_page_asks_the_network_for_nothing():
    text = page_of(board_of(example()), pictures.gallery(items(example())))
    found = Elements(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not {"iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert [a for a in found.attributes if a[1] in {"src", "href"}] == [("link", "href", "data:,")]
    (policy,) = [
        value for tag, name, value in found.attributes if tag == "meta" and name == "content" and "src" in value
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_hostile_names_open_no_element():
    plain, hostile = (Elements(page_of(board_of(example(name)))) for name in ("tiny-ridge", HOSTILE))
    assert hostile.tags == plain.tags
    assert json.loads(re.search(r'id="board">(.*?)</script>', page_of(board_of(example(HOSTILE))))[1])


def test_gallery_refuses_what_is_not_a_picture():
    with pytest.raises(BadDataError, match="subject 1, stimulus 5: not a PNG"):
        pictures.gallery([Item(1, 5, "", b"GIF89a", {})])
    made = pictures.gallery([Item(1, 5, "", png(0), {})])
    pictures.validate(made, "gallery.json")
    made["items"][0]["truth"] = "https://example.org/pixel.png"
    with pytest.raises(CorruptFileError, match=r"gallery\.json: \$\.items\[0\]\.truth"):
        pictures.validate(made, "gallery.json")


def document_of(browser, page):
    """The document that a browser makes of a page."""
    browser.resize(1400, 1000)
    browser.open(page.as_uri())
    return browser.js("document.documentElement.outerHTML")


@pytest.fixture
def opened(browser, tmp_path):
    """The document that a browser makes of a page with a hostile name in it."""
    pairs = example(HOSTILE)
    page = tmp_path / "leaderboard.html"
    page.write_text(page_of(board_of(pairs), pictures.gallery(items(pairs))))
    return pairs, document_of(browser, page)


def test_browser_draws_every_row_and_runs_nothing_foreign(opened):
    pairs, document = opened
    board = board_of(pairs)
    table = document[document.index('<table id="scores">') :]
    table = table[: table.index("</table>")]
    drawn = re.findall(r'<tr class="(\w+)" data-record="([0-9a-f]{16})">', table)
    assert drawn == [(row["role"], row["record_id"]) for row in board["tables"][0]["rows"]]
    for row in board["tables"][0]["rows"]:
        assert f">{row['metrics']['pixcorr']['value']:.3f}<" in table
        assert f">{100 * row['metrics']['low']['value']:.1f}%<" in table
    assert "<title>reconbench leaderboard</title>" in document
    shown = document[: document.index('<script type="application/json"')]
    assert "<script" not in shown.replace(shown[shown.index("<head>") : shown.index("</head>")], "")
    assert "onerror=alert(1)&gt;" in shown
    assert shown.count("<img ") == 2 * (1 + 7)  # truth and seven rows of the shown table, two images
    assert "BadDataError in prepare: the mask has no voxels" in shown


def test_browser_takes_a_picture_of_the_page(browser, tmp_path):
    pairs = example()
    page, picture = tmp_path / "leaderboard.html", tmp_path / "page.png"
    page.write_text(page_of(board_of(pairs), pictures.gallery(items(pairs))))
    browser.resize(1400, 1000)
    browser.open(page.as_uri())
    browser.screenshot(picture)
    seen = np.asarray(Image.open(picture).convert("RGB"))
    assert seen.shape == (1000, 1400, 3)
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) > 50


# -- The stage ---------------------------------------------------------------------------------------------------------


def test_stage_writes_checks_and_prints(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "board"
    write_all(runs, example())
    assert main(["--runs", str(runs), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "tiny-ridge" in captured.out
    assert f"wrote {out}/leaderboard.html" in captured.err
    files = {name: (out / name).read_bytes() for name in ("leaderboard.json", "leaderboard.md", "leaderboard.html")}
    assert main(["--runs", str(runs), "--out", str(out), "--check"]) == 0
    assert main(["--runs", str(runs), "--out", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in files} == files
    assert json.loads(files["leaderboard.json"]) == board_of(example())


def test_pictures_stay_until_new_ones_come(tmp_path):
    runs, out = Folder.at(tmp_path / "runs"), Folder.at(tmp_path / "board")
    pairs = example()
    write_all(tmp_path / "runs", pairs)
    build_board(runs, out, items(pairs))
    first = out.read_bytes("leaderboard.html")
    assert b"data:image/png;base64," in first
    assert [item["subject"] for item in out.read_json("gallery.json")["items"]] == [1, 2]
    build_board(runs, out)
    assert out.read_bytes("leaderboard.html") == first
    check_board(runs, out)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("leaderboard.json", lambda t: t.replace('"rank": 1,', '"rank": 2,', 1), "is not what the records of"),
        ("leaderboard.json", lambda t: t.replace('"count": ', '"counts": '), "counts"),
        ("leaderboard.json", lambda t: t[:-3], "is not JSON"),
        ("leaderboard.md", lambda t: t + "edited by hand", r"leaderboard\.md was not made from leaderboard\.json"),
        ("leaderboard.html", lambda t: t.replace("mlp", "best", 1), r"leaderboard\.html was not made from"),
    ],
)
def test_check_finds_what_was_changed(tmp_path, capsys, name, change, message):
    write_all(tmp_path, example())
    build_board(Folder.at(tmp_path), Folder.at(tmp_path))
    path = tmp_path / name
    path.write_text(change(path.read_text()))
    assert main(["--runs", str(tmp_path), "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_check_of_nothing_says_what_is_missing(tmp_path, capsys):
    assert main(["--runs", str(tmp_path / "none")]) == 2
    assert "none/scores: score something first" in capsys.readouterr().err
    write_all(tmp_path, example())
    assert main(["--runs", str(tmp_path), "--check"]) == 2
    assert "leaderboard.json" in capsys.readouterr().err


def test_damaged_record_stops_the_stage_and_writes_nothing(tmp_path, capsys):
    write_all(tmp_path, example())
    record = next((tmp_path / "scores").iterdir()) / "record.json"
    record.write_text(record.read_text()[:100])
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path / "board")]) == 2
    assert f"{record} is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


def test_script_runs_from_anywhere(tmp_path):
    write_all(tmp_path, example())
    script = Path(__file__).parents[1] / "bench" / "leaderboard.py"
    command = [sys.executable, str(script), "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny-ridge" in done.stdout


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(markdown(board_of(example())))
