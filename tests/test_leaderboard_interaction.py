"""The page under mouse and keyboard, in a real headless browser: sorting, filters, images, pairs, details, papers."""

import dataclasses
import json

import pytest
from board_records import COLUMNS, dataset, draw, protocol, scored
from test_leaderboard_page import png

from bench.board.gallery import Item
from bench.core.storage import Folder
from bench.leaderboard import build_board
from bench.records.parts import Finding, LatentScore, MetricValue, Step
from bench.records.record import write_record

KINDS = tuple(dataclasses.replace(c, kind="identification" if "2-way" in c.label else "pixel") for c in COLUMNS)
WHOLE = dataclasses.replace(COLUMNS[0], name="retrieval", label="Retrieval", ranked=False)
NOT_COMPUTED = MetricValue(None, 0, None, None, True, "not computed: needs predicted latents")
DASH, MINUS = "\u2013", "\u2212"
SYSTEMS = (("mlp", 0.7), ("ridge", 0.5), ("gcn", 0.45), ("knn", 0.4), ("lasso", 0.35), ("pls", 0.3), ("svr", 0.25))


def records():
    """Seven systems on NSD, two that do not compete, and a table of other data and another protocol."""
    nsd, rules = dataset(name="nsd"), protocol((*KINDS, WHOLE), name="mindeye2")
    note = Finding("training-sets", "generator 'sd' was trained on laion-2b-en", {"set": "laion-2b-en"}, excludes=False)
    leak = Finding("overlap", "3 test images were trained on", {"stimuli": [4, 5, 6]})
    truth = Finding("selection-by-truth", "render node 'out' selects its samples by the true picture", {})
    latents = tuple(LatentScore(s, "clip", "test correlation", 0.3, 0.6, 0.5) for s in (1, 2))
    more = {
        "mlp": {"leakage": (note,), "latents": latents},
        "ridge": {"declared": (Step("select", "out", {"by": "brain", "samples": 16}),)},
    }

    def one(name, quality, seed, **changes):
        # Retrieval was not computed: its cells are dashes, in the table and in the view of an image.
        record, samples = scored(name, draw(quality, seed=seed, columns=KINDS), rules=rules, part=nsd, **changes)
        none = {"retrieval": NOT_COMPUTED}
        by_subject = {key: own | none for key, own in record.per_subject.items()}
        return dataclasses.replace(record, metrics=record.metrics | none, per_subject=by_subject), samples

    pairs = [one(name, quality, seed, **more.get(name, {})) for seed, (name, quality) in enumerate(SYSTEMS)]
    pairs += [one("best of 16", 0.85, 8, leakage=(truth,)), one("leaky", 0.9, 9, leakage=(leak,))]
    pairs += [
        one(*each, control=kind)
        for *each, kind in (("mean image", 0.2, 20, "mean-image"), ("oracle", 0.95, 21, "oracle"))
    ]
    things = dataset(name="things")
    return [*pairs, scored("tiny", draw(0.5), part=things), scored("small", draw(0.4, seed=3), part=things)]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A board with pictures of three images of two subjects, and where its page lies."""
    folder = tmp_path_factory.mktemp("board")
    runs, pairs = Folder.at(folder), records()
    for record, samples in pairs:
        write_record(runs / "scores" / record.id, record, samples)
    nsd = [record.id for record, _ in pairs if record.dataset.name == "nsd"]
    items = [
        Item(subject, stimulus, "a <b>red</b> ball", png(40 * subject), {key: png(20 * stimulus) for key in nsd})
        for subject in (1, 2)
        for stimulus in (3, 4, 5)
    ]
    return build_board(runs, runs, items), folder


@pytest.fixture
def page(browser, board):
    """The page as it is when it has just been opened; what it logged as an error fails the test."""
    browser.resize(1400, 1000)
    browser.open((board[1] / "leaderboard.html").as_uri())
    browser.errors.clear()
    yield browser
    assert not browser.errors


def names(page, group="systems"):
    return page.js(f"[...document.querySelectorAll('#scores .{group} .expand')].map((b) => b.textContent)")


def focus(page):
    return page.js("document.activeElement.id")


def wait_until_closed(page):
    """The dialog is gone and the page has heard of it: the event comes after the dialog has closed."""
    page.wait("!document.getElementById('image').open && location.hash === ''")


def table_of(board, dataset="nsd"):
    return next(table for table in board[0]["tables"] if table["dataset"]["name"] == dataset)


def test_columns_sort_by_mouse_and_keyboard_and_groups_never_mix(page, board):
    by_rank = [row["name"] for row in table_of(board)["rows"] if row["role"] == "system"]
    assert names(page) == by_rank
    page.click("#sort-distance")  # lower is better: the first click puts the best first
    values = {row["name"]: row["metrics"]["distance"]["value"] for row in table_of(board)["rows"]}
    assert names(page) == sorted(by_rank, key=values.get)
    page.press("Enter")  # the head of the column still has the focus
    assert focus(page) == "sort-distance"
    assert names(page) == sorted(by_rank, key=values.get, reverse=True)
    assert page.js("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    assert names(page, "apart") == ["best of 16", "leaky"]
    assert names(page, "controls") == ["oracle", "mean image"][:: 1 if values["oracle"] > values["mean image"] else -1]
    page.click("#sort-name")
    assert names(page) == sorted(by_rank)


def test_rows_that_do_not_compete_stand_apart_and_say_why(page):
    headings = page.js("[...document.querySelectorAll('#scores .apart .why')].map((e) => e.textContent)")
    assert [heading.split(":")[0] for heading in headings] == ["Oracle selection", "Leaky"]
    ranks = page.js("[...document.querySelectorAll('#scores .apart tr[data-record] .rank')].map((e) => e.textContent)")
    assert ranks == [DASH, DASH]
    page.click("#scores .apart .expand")
    text = page.js("document.querySelector('#scores .details').innerText")
    assert "Why it is not ranked" in text
    assert "selects its samples by the true picture" in text


def test_details_open_with_the_keyboard(page, board):
    row = table_of(board)["rows"][0]
    button = f"details-{row['record_id']}"
    page.js(f"document.getElementById('{button}').focus()")
    page.press("Enter")
    assert focus(page) == button
    assert page.js(f"document.getElementById('{button}').ariaExpanded") == "true"
    text = page.js("document.querySelector('#scores .details').innerText")
    assert "generator 'sd' was trained on laion-2b-en" in text
    assert "50% of ceiling 0.600" in text
    page.press("Enter")
    assert page.js("document.querySelector('#scores .details')") is None
    page.click("#scores .systems tr:nth-child(2) .expand")
    assert "select out: by brain, samples 16" in page.js("document.querySelector('#scores .details').innerText")
    assert "selected by brain" in page.js("document.querySelector('#scores .systems tr:nth-child(2)').innerText")


def test_filters_choose_table_and_subject_and_keep_the_focus(page, board):
    page.choose("pick-subject", "2")
    assert focus(page) == "pick-subject"
    row = table_of(board)["rows"][0]
    shown = f"{row['metrics']['pixcorr']['per_subject']['2']['value']:.3f}"
    assert page.js("document.querySelector('#scores .systems td:nth-child(3)').firstChild.data") == shown
    assert page.js("[...document.querySelectorAll('.pictures .head')].map((e) => e.id)") == [
        f"image-2-{stimulus}" for stimulus in (3, 4, 5)
    ]
    page.choose("pick-dataset", "things")
    assert names(page) == ["tiny", "small"]
    assert page.js("document.getElementById('gallery').children.length") == 0


def test_image_opens_by_enter_and_closes_by_escape(page, board):
    page.js("document.getElementById('image-1-4').focus()")
    page.press("Enter")
    page.wait("document.getElementById('image').open")
    assert page.js("location.hash") == "#image=1-4"
    assert page.js("document.getElementById('image-title').textContent") == "Subject 1, image 4"
    assert page.js("document.querySelector('#image .note').textContent") == "a <b>red</b> ball"
    assert page.js("document.querySelectorAll('#image img').length") == 1 + 11
    for _ in range(9):  # the focus stays in the dialog or goes to the browser, never to the page behind
        page.press("Tab")
        assert page.js("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.press("Escape")
    wait_until_closed(page)
    assert focus(page) == "image-1-4"


def test_image_shows_scores_and_their_places(page, board):
    page.click(".pictures img[data-image='2-5']")
    page.wait("document.getElementById('image').open")
    content = json.loads((board[1] / "gallery.json").read_text())
    item = next(item for item in content["items"] if (item["subject"], item["stimulus"]) == (2, 5))
    row = table_of(board)["rows"][0]
    line = f"#image-scores tr[data-record='{row['record_id']}'] td"
    cells = page.js(f'[...document.querySelectorAll("{line}")].map((e) => e.innerText)')
    for cell, column in zip(cells[1:], (*KINDS, WHOLE), strict=True):
        score = item["scores"][row["record_id"]].get(column.name)
        if score is None:
            assert (cell, column.name) == (DASH, "retrieval")
        else:
            value = f"{100 * score['value']:.1f}%" if column.kind == "identification" else f"{score['value']:.3f}"
            assert cell.startswith(value)
            assert f"{score['rank']}" in cell.removeprefix(value)
            assert cell.endswith(" of 20")
    share = [(s["of"] - s["rank"] - s["tied"] / 2) / (s["of"] - 1) for s in item["scores"][row["record_id"]].values()]
    assert f"better than {100 * sorted(share)[2]:.0f}%" in cells[0]  # the median of five
    page.press("ArrowLeft")
    page.wait("document.getElementById('image-title').textContent === 'Subject 2, image 4'")
    assert page.js("location.hash") == "#image=2-4"
    page.click("#image-close")
    wait_until_closed(page)
    assert focus(page) == "image-2-4"


def test_linked_image_opens_and_the_back_key_closes_it(page, board):
    address = (board[1] / "leaderboard.html").as_uri()
    page.open(f"{address}#image=2-3")
    page.wait("document.getElementById('image')?.open")
    assert page.js("document.getElementById('image-title').textContent") == "Subject 2, image 3"
    page.press("Escape")
    wait_until_closed(page)
    page.click("#image-1-3")
    page.wait("document.getElementById('image').open")
    page.js("history.back()")
    wait_until_closed(page)
    for unknown in ("#image=9-9", "#image=<b>", "#image=1-3x"):
        # The page's own listener came first, so it has run when this one has.
        page.js("window.heard = false; addEventListener('hashchange', () => { window.heard = true; }, {once: true})")
        page.js(f"location.hash = '{unknown}'")
        page.wait("window.heard")
        assert not page.js("document.getElementById('image').open")


def test_two_rows_are_compared_and_exchanged(page, board):
    table = table_of(board)
    first, second = table["rows"][:2]
    entries = {
        e["metric"]: e for e in table["pairs"] if {e["first"], e["second"]} == {first["record_id"], second["record_id"]}
    }
    assert page.js("[...document.querySelectorAll('#pairs select')].map((e) => e.value)") == [
        first["record_id"],
        second["record_id"],
    ]
    assert page.js("[...document.querySelectorAll('#tests tr[data-metric]')].map((e) => e.dataset.metric)") == list(
        entries
    )
    row = page.js("document.querySelector('#tests tr[data-metric=pixcorr]').innerText").split("\t")
    assert f"+{entries['pixcorr']['difference']:.3f}" in [cell.strip() for cell in row]
    assert row[-1].strip() == "mlp is better"
    page.choose("pick-first-row", second["record_id"])  # the row of the other side: the two change places
    assert page.js("document.getElementById('pick-second-row').value") == first["record_id"]
    row = page.js("document.querySelector('#tests tr[data-metric=pixcorr]').innerText")
    assert f"{MINUS}{entries['pixcorr']['difference']:.3f}" in row
    assert page.js("document.querySelector('#pairs .verdict').textContent").startswith(
        "ridge against mlp: better on 0, worse on 5"
    )


def test_pairs_that_are_not_stored_say_how_to_compute_them(page, board):
    rows = table_of(board)["rows"]
    page.choose("pick-second-row", rows[4]["record_id"])  # not a neighbour in rank
    assert page.js("document.getElementById('tests')") is None
    command = f"reconbench leaderboard compare {rows[0]['record_id']} {rows[4]['record_id']}"
    assert page.js("document.querySelector('#pairs code').textContent") == command
    floor = next(row for row in rows if row["control"] == "mean-image")
    page.choose("pick-second-row", floor["record_id"])
    assert page.js("document.querySelectorAll('#tests tr[data-metric]').length") == 5


def test_papers_follow_the_filters_and_sort(page, board):
    page.js("document.querySelector('#published details').open = true")
    papers = "[...document.querySelectorAll('#published tr[data-paper]')].map((e) => e.dataset.paper)"
    assert page.js(
        "[document.getElementById('paper-dataset').value, document.getElementById('paper-protocol').value]"
    ) == ["nsd", "mindeye2"]
    assert page.js(papers)[0] == "nsd-mindeye2"
    assert page.js("document.querySelector('#published .paper .tag').textContent") == "data and protocol chosen above"
    source = page.js("document.querySelector('#published .paper tbody th').innerText")
    assert "Table 1" in source
    page.click("#paper-sort-nsd-mindeye2-pixcorr")
    table = next(table for table in board[0]["published"] if table["name"] == "nsd-mindeye2")
    best = max(
        (row for row in table["rows"] if row["protocol"] == "mindeye2" and "pixcorr" in row["values"]),
        key=lambda row: row["values"]["pixcorr"],
    )
    assert page.js("document.querySelector('#published .paper tbody th').firstChild.data") == best["system"]
    assert focus(page) == "paper-sort-nsd-mindeye2-pixcorr"
    page.choose("paper-dataset", "all")
    page.choose("paper-protocol", "all")
    assert page.js(papers)[0] == "nsd-mindeye2"  # still first: it fits what is chosen above
    page.choose("pick-dataset", "things")
    assert set(page.js(papers)) == {
        "things-cs292f",
        "things-cs292f-latents",
    }  # papers have these data, not our protocol
    page.choose("paper-dataset", "all")
    assert page.js(papers)[0] == "things-cs292f"
    assert len(page.js(papers)) == sum(len(table["rows"]) for table in board[0]["published"])


@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_sticks_out_of_the_page(page, width):
    page.resize(width, 900)
    page.js("document.querySelectorAll('#scores .expand')[0].click()")
    page.js("document.querySelector('#published details').open = true")
    assert page.js("document.documentElement.scrollWidth <= window.innerWidth")
    page.click("#image-1-3")
    page.wait("document.getElementById('image').open")
    assert page.js("(() => { const d = document.getElementById('image'); return d.scrollWidth <= d.clientWidth; })()")
