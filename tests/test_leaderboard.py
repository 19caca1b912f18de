"""The leaderboard's JSON: tables, ranks, exclusions; a pure function of the records."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
from board_records import COLUMNS, CONTROLS, controls, dataset, draw, protocol, scored

from bench.board import ranking
from bench.board.build import UNTRAINED, build, validate
from bench.board.markdown import markdown
from bench.board.rows import normalised
from bench.board.terminal import print_table
from bench.board.text import latents as latents_of
from bench.core.errors import BadDataError, CorruptFileError
from bench.core.identity import canonical_json
from bench.records.parts import Column, Failure, Finding, LatentScore, MetricValue, ModelSize
from eval.statistics import bootstrap
from eval.statistics.crossed import contributions
from eval.statistics.paired import holm, sign_flip
from eval.statistics.ranking import borda


def board_of(pairs):
    return build([record for record, _ in pairs], {record.id: samples for record, samples in pairs})


def constant(**levels):
    """Per-image values without any noise, so that every resample gives the same ranks."""
    return {name: np.full((2, 6), level) for name, level in levels.items()}


def names(table, role="system"):
    return [row["name"] for row in table["rows"] if row["role"] == role]


@pytest.fixture
def pairs():
    systems = [
        scored(name, draw(q, seed=i)) for i, (name, q) in enumerate((("ridge", 0.5), ("mlp", 0.7), ("gcn", 0.3)))
    ]
    return [*systems, *controls()]


def test_same_bytes_in_any_order(pairs):
    expected = canonical_json(board_of(pairs))
    shuffled = random.Random(3)
    for _ in range(4):
        shuffled.shuffle(pairs)
        assert canonical_json(board_of(pairs)) == expected


def test_order_of_the_sample_rows_does_not_matter(pairs):
    reversed_rows = [(record, samples.take(list(reversed(range(samples.num_rows))))) for record, samples in pairs]
    assert canonical_json(board_of(reversed_rows)) == canonical_json(board_of(pairs))


def test_rows_stand_by_rank_then_ceiling_then_floors(pairs):
    (table,) = board_of(pairs)["tables"]
    assert names(table) == ["mlp", "ridge", "gcn"]
    assert [row["name"] for row in table["rows"][3:]] == ["oracle", "shuffled", "mean image"]
    assert [row["role"] for row in table["rows"][3:]] == ["ceiling", "floor", "floor"]
    assert all(row["rank"] is None for row in table["rows"][3:])


def test_borda_by_hand():
    columns = (Column("pixcorr", "PixCorr", True), Column("ssim", "SSIM", True), Column("distance", "dist.", False))
    rules = protocol(columns)
    levels = {
        "a": {"pixcorr": 0.5, "ssim": 0.3, "distance": 0.2},  # (2 + 1 + 2) / 3
        "b": {"pixcorr": 0.4, "ssim": 0.4, "distance": 0.3},  # (1 + 2 + 1/2) / 3
        "c": {"pixcorr": 0.3, "ssim": 0.2, "distance": 0.3},  # (0 + 0 + 1/2) / 3
    }
    (table,) = board_of([scored(n, constant(**v), rules=rules) for n, v in levels.items()])["tables"]
    assert [(r["name"], r["borda"], r["rank"], r["rank_interval"]) for r in table["rows"]] == [
        ("a", pytest.approx(5 / 3), 1, [1, 1]),
        ("b", pytest.approx(3.5 / 3), 2, [2, 2]),
        ("c", pytest.approx(0.5 / 3), 3, [3, 3]),
    ]


def test_metrics_that_do_not_count_or_are_missing_leave_ranks_alone():
    columns = (Column("pixcorr", "PixCorr", True), Column("retrieval", "Retr.", True, ranked=False))
    rules = protocol(columns)
    a, b = (scored(n, constant(pixcorr=p, retrieval=r), rules=rules) for n, p, r in (("a", 0.2, 0.9), ("b", 0.3, 0.1)))
    (table,) = board_of([a, b])["tables"]
    assert [(row["name"], row["borda"]) for row in table["rows"]] == [("b", 1.0), ("a", 0.0)]
    missing = {"pixcorr": MetricValue(None, 0, None, None, True, "not computed: needs images")}
    none = dataclasses.replace(a[0], metrics=dict(a[0].metrics) | missing)
    (table,) = board_of([(none, a[1]), b])["tables"]
    assert [row["rank"] for row in table["rows"]] == [None, None]


def test_equal_systems_share_a_rank_and_a_worse_one_does_not():
    pairs = [scored("x", draw(0.6, seed=1)), scored("y", draw(0.6, seed=2)), scored("z", draw(0.1, seed=3))]
    (table,) = board_of(pairs)["tables"]
    ranks = {row["name"]: (row["rank"], row["rank_interval"]) for row in table["rows"]}
    assert ranks == {"x": (1, [1, 2]), "y": (1, [1, 2]), "z": (3, [3, 3])}


def slow_resamples(values):
    """Resample by repeating indices, `(metrics, subjects, images)` -> `(resamples, metrics)`."""
    rng = np.random.default_rng(ranking.SEED)
    subjects, images = values.shape[1:]
    people = rng.multinomial(subjects, [1 / subjects] * subjects, size=bootstrap.RESAMPLES)
    pictures = rng.multinomial(images, [1 / images] * images, size=bootstrap.RESAMPLES)
    found = []
    for who, what in zip(people, pictures, strict=True):
        taken = values[:, np.repeat(range(subjects), who)][:, :, np.repeat(range(images), what)]
        found.append(taken.mean(2).mean(1))
    return np.array(found)


def test_ranks_are_those_of_the_values_the_records_were_made_of():
    made = {str(i): draw(q, seed=i) for i, q in enumerate((0.60, 0.61, 0.58, 0.62))}
    pairs = [scored(name, values) for name, values in made.items()]
    (table,) = board_of(pairs)["tables"]
    rows = {
        record.id: np.stack([made[record.name][c.name] for c in COLUMNS])
        for record, _ in sorted(pairs, key=lambda pair: pair[0].id)
    }
    expected = borda(rows, [column.higher_is_better for column in COLUMNS], seed=ranking.SEED)
    assert [(row["record_id"], row["rank"], row["rank_interval"]) for row in table["rows"]] == [
        (rank.row, rank.rank, [rank.low, rank.high]) for rank in expected
    ]
    assert any(rank.low < rank.high for rank in expected)


def test_differences_against_a_slow_bootstrap(pairs):
    (table,) = board_of(pairs)["tables"]
    by_name = {record.name: (record, samples) for record, samples in pairs}
    entries = table["comparisons"]
    assert [entry["metric"] for entry in entries] == [column.name for column in COLUMNS] * 2
    for control in ("mean image", "shuffled"):
        system, floor = by_name["mlp"], by_name[control]
        grids = [[s[c.name].to_numpy().reshape(2, 20) for c in COLUMNS] for _, s in (system, floor)]
        delta = np.subtract(*np.array(grids))
        ends = np.percentile(slow_resamples(delta), [2.5, 97.5], axis=0)
        own = [entry for entry in entries if entry["control"] == floor[0].id]
        for place, entry in enumerate(own):
            assert entry["system"] == system[0].id
            assert entry["difference"] == pytest.approx(delta[place].mean(), abs=1e-9)
            assert entry["interval"] == pytest.approx(ends[:, place].tolist(), abs=1e-9)
            assert (entry["n"], entry["better"]) == (20, True)
            assert entry["p_value"] == pytest.approx(1e-4)
            assert entry["p_adjusted"] == pytest.approx(10e-4)  # two floors of five metrics
            assert (entry["difference"] > 0) == COLUMNS[place].higher_is_better


def test_pairs_of_systems_are_tested_as_one_family(pairs):
    (table,) = board_of(pairs)["tables"]
    by_id = {record.id: samples for record, samples in pairs}
    ranked = [row["record_id"] for row in table["rows"] if row["role"] == "system"]
    entries = table["pairs"]
    assert [(e["first"], e["second"]) for e in entries[::5]] == [(ranked[0], ranked[1]), (ranked[0], ranked[2]), (
        ranked[1], ranked[2])]  # fmt: skip
    deltas = []
    for entry in entries:
        first, second = (by_id[entry[side]][entry["metric"]].to_numpy().reshape(2, 20) for side in ("first", "second"))
        deltas.append(first - second)
        assert entry["difference"] == pytest.approx(deltas[-1].mean(), abs=1e-9)
    p = sign_flip(np.array(deltas).mean(axis=1), seed=ranking.SEED)
    assert [entry["p_value"] for entry in entries] == pytest.approx(p)
    assert [entry["p_adjusted"] for entry in entries] == pytest.approx(holm(p))
    ends = np.percentile(slow_resamples(np.array(deltas)), [2.5, 97.5], axis=0)
    assert [entry["interval"] for entry in entries] == pytest.approx(ends.T, abs=1e-9)
    assert {entry["better"] for entry in entries} == {ranked[0], ranked[1]}


def test_what_the_test_does_not_show_is_not_claimed():
    """Five images, all won: the interval excludes zero, but five coin flips cannot reach .05."""
    few = [scored(n, {c.name: v[:, :5] for c, v in zip(COLUMNS, draw(q, seed=i).values(), strict=True)})
           for i, (n, q) in enumerate((("a", 0.9), ("b", 0.1)))]  # fmt: skip
    (table,) = board_of(few)["tables"]
    assert all(e["interval"][0] > 0 for e in table["pairs"] if e["metric"] != "distance")
    assert {e["p_value"] for e in table["pairs"]} == {2 / 32}
    assert {e["better"] for e in table["pairs"]} == {None}


def test_large_tables_test_neighbours_in_rank():
    (table,) = board_of([scored(f"s{i}", draw(0.1 * i, seed=i)) for i in range(7)])["tables"]
    ranked = [row["record_id"] for row in table["rows"]]
    assert [(e["first"], e["second"]) for e in table["pairs"][::5]] == list(itertools.pairwise(ranked))


def test_a_system_no_better_than_a_floor_is_not_called_better():
    pairs = [scored("lazy", draw(0.25, seed=90)), *controls()]  # the mean image's own quality and noise
    (table,) = board_of(pairs)["tables"]
    floor = next(row["record_id"] for row in table["rows"] if row["control"] == "mean-image")
    own = [entry for entry in table["comparisons"] if entry["control"] == floor]
    assert [entry["difference"] for entry in own] == [0.0] * 5
    assert not any(entry["better"] for entry in own)


def test_normalised_is_unclipped_and_needs_both_ends(pairs):
    (table,) = board_of(pairs)["tables"]
    by_name = {row["name"]: row["metrics"]["distance"] for row in table["rows"]}
    low, high = by_name["mean image"], by_name["oracle"]
    assert (low["normalised"], high["normalised"]) == (0.0, 1.0)
    expected = (by_name["mlp"]["value"] - low["value"]) / (high["value"] - low["value"])
    assert by_name["mlp"]["normalised"] == pytest.approx(expected)
    assert by_name["shuffled"]["normalised"] < 0
    (alone,) = board_of(pairs[:3])["tables"]
    assert alone["rows"][0]["metrics"]["ssim"]["normalised"] is None
    assert alone["comparisons"] == []
    one = MetricValue(0.5, 6, None, None, True)
    assert normalised(one, one, one) is None


def test_each_system_is_measured_against_the_oracle_of_its_own_generator():
    def with_generator(pair, generator):
        models = (*pair[0].costs.models, ModelSize(generator, "generator", 10, 40))
        return dataclasses.replace(pair[0], costs=dataclasses.replace(pair[0].costs, models=models)), pair[1]

    levels = {"a": ("sd", 0.5), "b": ("vd", 0.5), "c": ("xl", 0.5)}
    pairs = [
        with_generator(scored(n, constant(pixcorr=v), rules=protocol(COLUMNS[:1])), g) for n, (g, v) in levels.items()
    ]
    for generator, level in (("sd", 1.0), ("vd", 0.6)):
        oracle = scored(f"oracle {generator}", constant(pixcorr=level), control="oracle", rules=protocol(COLUMNS[:1]))
        pairs.append(with_generator(oracle, generator))
    pairs.append(scored("mean image", constant(pixcorr=0.1), control="mean-image", rules=protocol(COLUMNS[:1])))
    (table,) = board_of(pairs)["tables"]
    found = {row["name"]: row["metrics"]["pixcorr"]["normalised"] for row in table["rows"]}
    assert found["a"] == pytest.approx(0.4 / 0.9)
    assert found["b"] == pytest.approx(0.8)
    assert found["c"] is None


def test_what_does_not_compare_stands_in_other_tables(pairs):
    others = [
        scored("ridge", draw(0.5), part=dataset(test_digest="8" * 16), salt=1),
        scored("ridge", draw(0.5), part=dataset(content="d" * 16), salt=2),
        scored("ridge", draw(0.5), rules=protocol(weights={"scene.safetensors": "cd" * 32}), salt=3),
        scored("ridge", draw(0.5, subjects=1), salt=4),
        scored("best-of-16", draw(0.9), division="open", division_reasons=("16 candidates",), salt=5),
    ]
    board = board_of([*pairs, *others])
    assert len(board["tables"]) == 6
    assert board["excluded"] == []
    opened = [table for table in board["tables"] if table["division"] == "open"]
    assert [[row["name"] for row in table["rows"]] for table in opened] == [
        ["best-of-16", "oracle", "shuffled", "mean image"]
    ]
    assert {tuple(names(table)) for table in board["tables"]} == {("best-of-16",), ("mlp", "ridge", "gcn"), ("ridge",)}


def test_other_betas_and_voxels_are_a_choice_of_the_system(pairs):
    other = scored("surface", draw(0.4), part=dataset(betas="fithrf", voxelset="V1 | V2", shards="6" * 16))
    (table,) = board_of([*pairs, other])["tables"]
    assert "surface" in names(table)


def test_untrained_networks_are_shown_apart_and_never_ranked(pairs):
    rules = protocol(name="mindeye2", untrained=True, weights={})
    board = board_of([*pairs, scored("mlp", draw(0.7), rules=rules), *controls(rules=rules)])
    ranked, unranked = board["tables"]
    assert (ranked["ranked"], unranked["ranked"]) == (True, False)
    assert unranked["heading"].endswith(UNTRAINED)
    assert all(row["rank"] is None for row in unranked["rows"])
    assert unranked["comparisons"] == []


def test_leaky_rows_are_shown_but_do_not_compete(pairs):
    finding = Finding("overlap", "3 test images were trained on", {"stimuli": [4, 5, 6]})
    board = board_of([*pairs, scored("cheat", draw(0.99), leakage=(finding,))])
    (table,) = board["tables"]
    assert names(table) == ["mlp", "ridge", "gcn"]
    (row,) = [row for row in table["rows"] if row["role"] == "leaky"]
    assert (row["name"], row["rank"], row["leakage"][0]["evidence"]) == ("cheat", None, {"stimuli": [4, 5, 6]})
    (entry,) = board["excluded"]
    assert (entry["kind"], entry["reason"]) == ("leaky", "overlap: 3 test images were trained on")


def test_notes_of_the_audit_cost_no_rank(pairs):
    note = Finding("generator-training-sets", "its generator has seen the test images", {}, excludes=False)
    board = board_of([*pairs, scored("noted", draw(0.99), leakage=(note,))])
    (row, *_) = board["tables"][0]["rows"]
    assert (row["name"], row["rank"], row["role"], row["leakage"][0]["excludes"]) == ("noted", 1, "system", False)
    assert board["excluded"] == []


def test_latents_are_shown_beside_their_noise_ceiling(capsys):
    latents = [LatentScore(s, "z", "test correlation", 0.1 * s, 0.4, 0.25 * s) for s in (1, 2)]
    others = [
        LatentScore(1, "all heads", "validation correlation", 0.7),
        LatentScore(1, "text", "test correlation", 0.3),
    ]
    pairs = [scored("ridge", draw(0.5), latents=(*latents, *others)), *controls()]
    board = board_of(pairs)
    assert latents_of(board["tables"][0]) == [
        ("ridge", "text", pytest.approx(0.3), None, None),
        ("ridge", "z", pytest.approx(0.15), pytest.approx(0.4), pytest.approx(0.375)),
    ]
    text = markdown(board)
    assert "| ridge | z | 0.150 | 0.400 | 0.375 |" in text
    assert "| ridge | text | 0.300 |  |  |" in text
    print_table(board)
    shown = capsys.readouterr().out
    assert "ridge: test correlation of z 0.150 (noise ceiling 0.400, 38% of it)" in shown
    assert "ridge: test correlation of text 0.300 (no noise ceiling)" in shown


def test_the_board_prints_chance_and_shares_between_floor_and_ceiling(pairs):
    text = markdown(board_of(pairs))
    assert "| – | *expected by chance* | 0.000 | – | 0.500 | 0.500 | 1.000 |" in text  # noqa: RUF001 - the dash of text
    (table,) = board_of(pairs)["tables"]
    shares = [table["rows"][0]["metrics"][column.name]["normalised"] for column in COLUMNS]
    assert f"| mlp | {' | '.join(f'{share:.2f}' for share in shares)} |" in text


def test_failed_records_are_excluded_with_their_reason(pairs):
    record, _ = scored("braid", draw(0.5))
    error = Failure("BadDataError", "the mask has no voxels", "prepare")
    record = dataclasses.replace(record, status="failed", error=error, metrics={}, per_subject={}, samples=None)
    board = build([record, *(r for r, _ in pairs)], {r.id: s for r, s in pairs})
    (entry,) = board["excluded"]
    assert (entry["kind"], entry["name"]) == ("failed", "braid")
    assert entry["reason"] == "BadDataError in prepare: the mask has no voxels"
    assert "braid" not in names(board["tables"][0])
    assert board["records"]["count"] == len(pairs) + 1


def test_later_scores_and_newer_protocols_supersede(pairs):
    again = scored("ridge", draw(0.9), salt=1, finished="2026-11-21T11:00:00Z")
    board = board_of([*pairs, again])
    assert names(board["tables"][0])[0] == "ridge"
    (entry,) = board["excluded"]
    assert (entry["kind"], entry["record_id"]) == ("superseded", pairs[0][0].id)
    assert entry["reason"] == f"'ridge' was scored again later as {again[0].id}"
    newer = scored("ridge", draw(0.5), rules=protocol(version=2))
    board = board_of([*pairs, newer])
    assert [names(table) for table in board["tables"]] == [["ridge"]]
    assert {e["reason"] for e in board["excluded"]} == {"scored under version 1 of scenes-1, now 2: rescore"}
    assert len(board["excluded"]) == len(pairs)


def test_systems_scored_on_other_images_are_refused():
    pairs = [scored("a", draw(0.5)), scored("b", draw(0.5), stimuli=range(1, 21))]
    with pytest.raises(BadDataError, match="hold different test images"):
        board_of(pairs)
    with pytest.raises(BadDataError, match=r"\(a\) has no per-image table"):
        build([pairs[0][0]], {})


def test_images_that_some_subjects_lack_leave_their_mean_alone():
    """Subject 2 lacks the last image; its mean is over the images it has."""
    record, samples = scored("a", draw(0.5))
    (short,) = [samples.slice(0, 39)]
    values = ranking.values_of([record], ["pixcorr"], {record.id: short})
    assert np.isnan(values[0, 0, 1, 19])
    got = contributions(values[0, 0]).sum()
    raw = samples["pixcorr"].to_numpy().reshape(2, 20)
    assert got == pytest.approx((raw[0].mean() + raw[1, :19].mean()) / 2, abs=1e-9)


def test_no_records_make_an_empty_board_beside_what_papers_say():
    board = build([], {})
    assert (board["tables"], board["excluded"]) == ([], [])
    assert [table["name"] for table in board["published"][:2]] == ["nsd-mindeye2", "nsd-old"]


def test_chance_needs_no_pictures(pairs):
    record, _ = scored("chance", draw(0.5), control="chance")
    record = dataclasses.replace(record, samples=None)
    (table,) = build([record, *(r for r, _ in pairs)], {r.id: s for r, s in pairs})["tables"]
    assert table["rows"][-1]["name"] == "chance"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(schema_version="9"), "schema_version"),
        (lambda b: b.update(clock="now"), "clock"),
        (lambda b: b["tables"][0].update(rows=[]), "rows"),
        (lambda b: b["tables"][0]["rows"][0].update(rank=0), "rank"),
        (lambda b: b["tables"][0]["rows"][-1].update(rank=1), "rank"),
        (lambda b: b["tables"][0]["rows"][0].pop("leakage"), "leakage"),
        (lambda b: b["tables"][0]["rows"][0]["metrics"]["ssim"].update(value="0.5"), "ssim"),
        (lambda b: b["tables"][0].update(ranked=False), "tables"),
    ],
)
def test_schema_refuses(pairs, change, message):
    board = json.loads(canonical_json(board_of(pairs)))
    validate(board, "leaderboard.json")
    change(board)
    with pytest.raises(CorruptFileError, match=message):
        validate(board, "leaderboard.json")


def test_controls_alone_still_make_a_table():
    (table,) = board_of(controls())["tables"]
    assert [row["control"] for row in table["rows"]] == ["oracle", "shuffled", "mean-image"]
    assert {control for _, control, _ in CONTROLS} == {row["control"] for row in table["rows"]}
