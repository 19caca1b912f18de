"""`leaderboard compare`: which rows compare, what is said of those that do not, and the printed tests."""

import dataclasses
import itertools

import numpy as np
import pytest
from board_records import COLUMNS, controls, dataset, draw, protocol, scored

from bench.board.compare import named_pairs, table_pairs
from bench.board.comparisons import compare
from bench.board.text import p_value
from bench.core.errors import BadDataError, UnknownNameError
from bench.core.storage import Folder
from bench.leaderboard import main
from bench.records.parts import Finding
from bench.records.record import write_record
from eval.statistics.paired import holm, paired_tests

FINDING = Finding("overlap", "3 test images were trained on", {})


def made():
    systems = [scored(n, draw(q, seed=i)) for i, (n, q) in enumerate((("ridge", 0.5), ("mlp", 0.52), ("gcn", 0.3)))]
    opened = scored("best", draw(0.8, seed=5), division="open", division_reasons=("a blend",))
    return [*systems, opened, scored("cheat", draw(0.9, seed=6), leakage=(FINDING,)), *controls()]


@pytest.fixture
def pairs():
    return made()


@pytest.fixture
def runs(tmp_path, pairs):
    for record, samples in pairs:
        write_record(Folder.at(tmp_path) / "scores" / record.id, record, samples)
    return tmp_path


def names(found):
    return [(a.name, b.name) for a, b in found]


def test_rows_are_found_by_name_and_by_id(pairs):
    records = [record for record, _ in pairs]
    ridge = next(record for record in records if record.name == "ridge")
    assert names(named_pairs(records, "ridge", "mlp")) == [("ridge", "mlp")]
    assert names(named_pairs(records, "mlp", ridge.id[:6])) == [("mlp", "ridge")]
    # The division may differ, controls and leaky rows have scores as well.
    for other in ("best", "cheat", "oracle", "mean image"):
        assert names(named_pairs(records, "ridge", other)) == [("ridge", other)]


def test_two_rows_are_compared_in_every_table_they_share(pairs):
    rules = protocol(name="mindeye2")
    more = [scored(name, draw(q), rules=rules) for name, q in (("ridge", 0.5), ("mlp", 0.6))]
    found = named_pairs([record for record, _ in [*pairs, *more]], "ridge", "mlp")
    assert sorted(a.protocol.name for a, _ in found) == ["mindeye2", "scenes-1"]
    assert all(a.protocol == b.protocol for a, b in found)


def test_superseded_scores_are_left_out(pairs):
    again = scored("ridge", draw(0.9), salt=1, finished="2026-11-21T11:00:00Z")
    ((ridge, _),) = named_pairs([record for record, _ in [*pairs, again]], "ridge", "mlp")
    assert ridge.id == again[0].id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": dataset(name="nsd")}, "'other' and 'ridge' do not compare: dataset nsd and simulated-nsd"),
        ({"part": dataset(test_digest="8" * 16)}, "test_digest 8888888888888888 and 7777777777777777"),
        ({"rules": protocol(name="mindeye2")}, "protocol mindeye2 and scenes-1"),
        ({"rules": protocol(weights={"scene.safetensors": "cd" * 32})}, "weights {'scene.safetensors': 'cdcdcd"),
        ({"subjects": 1}, r"subjects \[1\] and \[1, 2\]"),
    ],
)
def test_rows_of_other_data_or_protocols_do_not_compare(pairs, change, message):
    other = scored("other", draw(0.5, subjects=change.pop("subjects", 2)), **change)
    with pytest.raises(BadDataError, match=message):
        named_pairs([record for record, _ in [*pairs, other]], "other", "ridge")


def test_unknown_names_offer_the_nearest(pairs):
    records = [record for record, _ in pairs]
    with pytest.raises(UnknownNameError, match=r"unknown row 'rigde' in the board.*Did you mean 'ridge'"):
        named_pairs(records, "rigde", "mlp")
    with pytest.raises(BadDataError, match="'ridge' and 'ridge' are one row: name two"):
        named_pairs(records, "ridge", "ridge")
    with pytest.raises(UnknownNameError, match="unknown table 'xyz'"):
        table_pairs(records, "xyz")
    with pytest.raises(BadDataError, match="no ranked table has two systems"):
        table_pairs(records[:1], None)


def test_all_pairs_are_one_family(pairs):
    records, samples = [record for record, _ in pairs], {record.id: table for record, table in pairs}
    (family,) = table_pairs(records, None)
    assert sorted(names(family)) == [("gcn", "mlp"), ("gcn", "ridge"), ("mlp", "ridge")]
    entries = compare(family, samples)
    deltas = np.array(
        [[np.subtract(*(samples[r.id][c.name].to_numpy().reshape(2, 20) for r in pair)) for c in COLUMNS]
         for pair in family]
    ).reshape(15, 2, 20)  # fmt: skip
    tests = paired_tests(deltas, seed=0)
    assert [e["p_adjusted"] for e in entries] == pytest.approx(holm(np.array([t.p_value for t in tests])))
    np.testing.assert_allclose([e["interval"] for e in entries], [[t.low, t.high] for t in tests], atol=1e-9)
    alone = compare(family[2:], samples)
    assert [e["p_value"] for e in alone] == [e["p_value"] for e in entries[10:]]
    assert all(a["p_adjusted"] <= e["p_adjusted"] for a, e in zip(alone, entries[10:], strict=True))


def test_swapping_two_rows_turns_every_sign(pairs):
    samples = {record.id: table for record, table in pairs}
    (pair,) = named_pairs([record for record, _ in pairs], "gcn", "mlp")
    forth, back = compare([pair], samples), compare([pair[::-1]], samples)
    for one, other in zip(forth, back, strict=True):
        assert (one["difference"], one["interval"]) == (-other["difference"], [-e for e in other["interval"][::-1]])
        assert (one["p_value"], one["better"]) == (other["p_value"], other["better"])
        assert one["better"] == pair[1].id


def test_pairs_of_rows_scored_on_other_images_are_refused(pairs):
    short = scored("short", draw(0.5), stimuli=range(1, 21))
    samples = {record.id: table for record, table in [*pairs, short]}
    with pytest.raises(BadDataError, match="hold different test images"):
        compare([(pairs[0][0], short[0])], samples)


def test_metrics_that_one_row_lacks_are_left_out(pairs):
    one, other = pairs[0][0], pairs[1][0]
    nothing = dataclasses.replace(one.metrics["ssim"], value=None, status="not computed: needs betas")
    lacking = dataclasses.replace(one, metrics=dict(one.metrics) | {"ssim": nothing})
    entries = compare([(lacking, other)], {record.id: table for record, table in pairs})
    assert [e["metric"] for e in entries] == [c.name for c in COLUMNS if c.name != "ssim"]


def test_the_command_prints_every_metric(runs, capsys):
    assert main(["compare", "mlp", "cheat", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "mlp minus cheat" in shown
    assert "cheat is leaky, not ranked" in shown
    assert "…" not in shown  # nothing is cut off in a log
    for column in COLUMNS:
        assert column.label in shown
    assert shown.count(" cheat ") >= len(COLUMNS)


def test_the_command_prints_all_pairs(runs, capsys):
    assert main(["compare", "--all", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    for first, second in itertools.combinations(("gcn", "mlp", "ridge"), 2):
        assert f"{first} minus {second}" in shown
    assert "Holm's over all 15 tests of these 3 pairs" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ridge"], "compare takes two rows, or --all"),
        (["ridge", "mlp", "--all"], "compare takes two rows, or --all"),
        (["ridge", "mlp", "--table", "ab"], "compare takes two rows, or --all"),
        (["ridge", "nobody"], "unknown row 'nobody'"),
    ],
)
def test_bad_input_is_one_line(runs, argv, message, capsys):
    assert main(["compare", *argv, "--runs", str(runs)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said


def test_p_values_are_short():
    assert [p_value(p) for p in (0.0001, 0.001, 0.0496, 1.0)] == ["<.001", ".001", ".050", "1.000"]
