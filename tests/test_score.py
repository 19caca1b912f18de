"""The score stage: values as the suite gives them, one record a row, written last and never twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from tiny_system import Tiny, keys, noisy, stored, true_pictures

from bench import score as stage
from bench.core import cluster
from bench.core.errors import BadDataError, MissingDataError
from bench.core.identity import digest, source_digest
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shards.pictures import SEAL, ImageSet
from bench.records.parts import Costs
from bench.records.record import RECORD_FILE, Record, read_records, read_samples
from bench.score import score_entries
from bench.scoring.entries import Entry, ScoringTask, score_link
from bench.scoring.outside.inputs import images_of
from eval.networks._weights import UNTRAINED
from eval.suite import Scores
from eval.suite import score as suite

COUNT = 8
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def stimuli(tiny: Tiny) -> tuple[int, ...]:
    return tiny.stimuli(COUNT)


@pytest.fixture(scope="module")
def truth(tiny: Tiny, stimuli: tuple[int, ...]) -> np.ndarray:
    return true_pictures(tiny.data, stimuli)


@pytest.fixture(scope="module")
def pictures(truth: np.ndarray) -> dict[int, np.ndarray]:
    """What the row shows, by subject."""
    return {1: noisy(truth, 60, 1), 2: noisy(truth, 90, 2)}


@pytest.fixture(scope="module")
def images(runs: Folder, stimuli: tuple[int, ...], pictures: dict[int, np.ndarray]) -> dict[int, ImageSet]:
    return {s: stored(runs, keys(s, stimuli), values, made="noisy", subject=s) for s, values in pictures.items()}


@pytest.fixture(scope="module")
def task(tiny: Tiny, runs: Folder, stimuli: tuple[int, ...]) -> ScoringTask:
    return ScoringTask(tiny.data, {1: stimuli, 2: stimuli}, "scenes-1", None, runs)


@pytest.fixture(scope="module")
def rows(images: dict[int, ImageSet]) -> list[Entry]:
    costs = Costs({}, {"fit": 2.0}, {"fit": 3.0}, peak_memory_bytes=1)
    return [
        Entry("mine", "system", None, images, costs=costs, tried=3),
        Entry("chance", "control", "chance", images, wrong_pairs=True),
    ]


@pytest.fixture(scope="module")
def records(rows: list[Entry], task: ScoringTask) -> dict[str, Record]:
    """Records of both rows, scored once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RECONBENCH_COMMIT", COMMIT)
    score(task, *rows)
    patch.undo()
    return {record.name: record for record in read_records(task.runs)}


def score(task: ScoringTask, *rows: Entry) -> int:
    """Score rows; return how many subjects of rows were counted."""
    done = []
    score_entries(rows, task, lambda units=1, note="": done.append(units))
    return sum(done)


def direct(shown: np.ndarray, truth: np.ndarray) -> Scores:
    return suite(torch.from_numpy(shown), torch.from_numpy(truth), "scenes-1")


def test_values_are_those_of_the_suite(records, pictures, truth, stimuli, task):
    record = records["mine"]
    table = read_samples(task.runs, record)
    assert table.num_rows == 2 * COUNT
    for subject, shown in pictures.items():
        expected = direct(shown, truth)
        mine = table.filter(np.asarray(table["subject"]) == subject)
        assert mine["stimulus"].to_pylist() == list(stimuli)
        for metric in expected.metrics:
            value = record.per_subject[str(subject)][metric.name]
            assert value.value == pytest.approx(metric.value, abs=1e-5)
            assert (value.n, value.status) == (COUNT, "ok")
            np.testing.assert_allclose(mine[metric.name].to_numpy(), expected.per_image[metric.name], atol=1e-4)
    for name, value in record.metrics.items():
        by_subject = [record.per_subject[s][name].value for s in ("1", "2")]
        assert value.value == pytest.approx(np.mean(by_subject))
        assert value.interval[0] <= value.value <= value.interval[1]


def test_chance_pairs_pictures_with_wrong_truths(records, pictures, truth):
    values = records["chance"].metrics
    right = direct(pictures[1], truth)["pixcorr"].value
    wrong = np.corrcoef([pictures[1][i].ravel() / 255.0 for i in range(COUNT)], [t.ravel() / 255.0 for t in truth])
    pairs = wrong[:COUNT, COUNT:][~np.eye(COUNT, dtype=bool)]
    assert pairs.min() <= records["chance"].per_subject["1"]["pixcorr"].value <= pairs.max()
    assert values["pixcorr"].value < right - 0.2
    # A wrong pairing: identification cannot tell the shown truth from others, up to the pictures being few.
    assert abs(values["scene-low"].value - 0.5) < 0.25


def test_the_per_image_table_names_what_was_scored(records, task, pictures):
    table = read_samples(task.runs, records["mine"])
    assert set(table["sample"].to_pylist()) == {0}
    assert table["seed"].to_pylist() == list(range(COUNT)) * 2
    expected = [hashlib.sha256(p.tobytes()).hexdigest() for s in (1, 2) for p in pictures[s]]
    assert table["image_sha256"].to_pylist() == expected
    chance = read_samples(task.runs, records["chance"])
    assert set(chance["sample"].to_pylist()) == {-1}


def test_the_record_says_what_was_scored_and_how(records, rows, task, images, stimuli, tiny):
    record = records["mine"]
    assert record.id == digest(record.identity.score.description)
    assert {s: link.id for s, link in record.identity.images.items()} == {str(s): i.id for s, i in images.items()}
    assert all(link.id == digest(link.description) for link in record.identity.images.values())
    data = record.dataset
    betas, space, voxelset = tiny.data.shards.name.partition("@")[0].split(".", 2)
    assert (data.betas, data.space, data.voxelset) == (betas, space, voxelset)
    assert (data.name, data.shards) == (tiny.data.manifest.dataset, tiny.data.manifest.content_digest)
    assert data.content == tiny.data.stimuli_manifest.content_digest
    assert (data.subjects, data.test_stimuli) == ((1, 2), COUNT)
    assert data.test_digest == shard_set.tested_digest(task.tested)
    assert (record.source_digest, record.commit) == (source_digest(), COMMIT)
    assert record.ray["settings"] == cluster.apply_settings()
    assert record.determinism["seed"] == 0
    assert (record.division, record.division_reasons, record.configurations_tried) == ("closed", (), 3)
    assert (record.protocol.name, record.protocol.untrained) == ("scenes-1", False)
    assert set(record.protocol.weights.values()) == set(task.digests().values())
    assert record.costs.wall_seconds["fit"] == 3.0
    assert record.costs.wall_seconds["score"] > 0
    assert record.costs.peak_memory_bytes > 1


def test_a_rerun_scores_nothing(records, rows, task, monkeypatch):
    before = {r.id: (task.runs / "scores" / r.id).read_bytes(RECORD_FILE) for r in records.values()}
    monkeypatch.setattr(stage, "_score_subject", None)
    assert score(task, *rows) == 4
    assert {name: (task.runs / "scores" / name).read_bytes(RECORD_FILE) for name in before} == before


def test_an_address_depends_on_pictures_protocol_weights_and_seed(rows, task, images, stimuli):
    row = rows[0]
    links = [
        score_link(row, task),
        score_link(rows[1], task),
        score_link(dataclasses.replace(row, images={1: images[1]}), task),
        score_link(dataclasses.replace(row, images={1: images[2], 2: images[1]}), task),
        score_link(row, dataclasses.replace(task, weights=UNTRAINED)),
        score_link(row, dataclasses.replace(task, seed=1)),
        score_link(row, dataclasses.replace(task, tested={1: stimuli[:4], 2: stimuli})),
    ]
    assert len({link.id for link in links}) == len(links)
    renamed = dataclasses.replace(row, name="other", costs=Costs({}, {}, {}))
    assert score_link(renamed, dataclasses.replace(task, cpus=2)).id == links[0].id


def test_several_pictures_a_stimulus_are_averaged_and_missing_ones_stand_in_turn(tiny, task, tmp_path, truth, stimuli):
    few, shown = stimuli[:4], truth[:4]
    counts = [3, 1, 2, 3]
    order = [(i, k) for k in range(3) for i in range(4) if k < counts[i]]
    made = np.stack([noisy(shown[i], 40 * (k + 1), 10 * i + k) for i, k in order])
    runs = Folder.at(tmp_path)
    table = keys(1, [few[i] for i, _ in order], repeat=[k for _, k in order])
    row = Entry("several", "system", None, {1: stored(runs, table, made, made="several")})
    score(dataclasses.replace(task, runs=runs, tested={1: few}), row)
    (record,) = read_records(runs)
    columns = [
        np.stack([noisy(shown[i], 40 * (k % counts[i] + 1), 10 * i + k % counts[i]) for i in range(4)])
        for k in range(3)
    ]
    for metric in ("pixcorr", "scene-high"):
        expected = np.mean([direct(column, shown).per_image[metric] for column in columns], axis=0)
        np.testing.assert_allclose(read_samples(runs, record)[metric].to_numpy(), expected, atol=1e-4)
    assert set(read_samples(runs, record)["sample"].to_pylist()) == {-1}


def test_rows_of_one_name_keep_their_own_values(task, tmp_path, truth, stimuli):
    few, runs = stimuli[:2], Folder.at(tmp_path)
    made = {amount: stored(runs, keys(1, few), noisy(truth[:2], amount, 0), amount=amount) for amount in (5, 120)}
    small = dataclasses.replace(task, runs=runs, tested={1: few})
    rows = [Entry("same", "system", None, {1: each}) for each in made.values()]
    score(small, *rows)
    near, far = (next(r for r in read_records(runs) if r.id == score_link(row, small).id) for row in rows)
    assert near.metrics["pixcorr"].value > far.metrics["pixcorr"].value + 0.1


def test_missing_pictures_are_named_and_leave_no_record(task, tmp_path, truth, stimuli):
    runs = Folder.at(tmp_path)
    row = Entry("mine", "system", None, {1: stored(runs, keys(1, stimuli[:3]), truth[:3], made="few")})
    small = dataclasses.replace(task, runs=runs, tested={1: stimuli[:5]})
    with pytest.raises(MissingDataError, match=rf"holds no picture of stimuli \[{stimuli[3]}, {stimuli[4]}\] \(2 in"):
        score(small, row)
    assert read_records(runs) == []
    with pytest.raises(BadDataError, match="'c': wrong pairs need at least 2 test pictures, got 1"):
        score(
            dataclasses.replace(small, tested={1: stimuli[:1]}),
            Entry("c", "control", "chance", row.images, wrong_pairs=True),
        )


def test_random_networks_mark_the_row(task, tmp_path, images, stimuli):
    other = dataclasses.replace(task, weights=UNTRAINED, runs=Folder.at(tmp_path), tested={1: stimuli[:3]})
    score(other, Entry("mine", "system", None, {1: images[1]}, open_reasons=("because",)))
    (record,) = read_records(other.runs)
    assert record.protocol.untrained
    assert all(value.startswith("untrained:") for value in record.protocol.weights.values())
    assert (record.division, record.division_reasons) == ("open", ("because",))


def cli(tiny: Tiny, runs: Folder, *images: str, name: str = "elsewhere", more: tuple[str, ...] = ()) -> int:
    given = ["--name", name, "--shards", tiny.data.shards.uri, "--runs", runs.uri, *more]
    return stage.main([*given, "--images", *images])


def test_the_stage_alone_scores_pictures_made_elsewhere(tiny, images, records, tmp_path, capsys):
    runs = Folder.at(tmp_path)
    assert cli(tiny, runs, f"1={images[1].folder}", f"2={images[2].folder}") == 0
    (record,) = read_records(runs)
    assert record.division_reasons == ("pictures were made elsewhere",)
    assert (record.name, record.dataset.subjects) == ("elsewhere", (1, 2))
    mine = records["mine"].metrics
    assert {n: m.value for n, m in record.metrics.items()} == pytest.approx({n: m.value for n, m in mine.items()})
    said = capsys.readouterr().err
    assert f"{record.metrics['ssim'].value:.4f}" in said


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ("one=somewhere", (), "--images takes SUBJECT=PATH with subjects from 1, got 'one=somewhere'"),
        ("0=somewhere", (), "subjects from 1, got '0=somewhere'"),
        ("01=somewhere", (), "subjects from 1, got '01=somewhere'"),
        ("1=nowhere", (), "no file or folder nowhere"),
        ("good", ("--protocol", "scenes-9"), "scenes-1"),
    ],
)
def test_bad_input_is_one_line(tiny, images, given, more, message, tmp_path, capsys):
    if given == "good":
        given = f"1={images[1].folder}"
    assert cli(tiny, Folder.at(tmp_path / "runs"), given, more=more) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_a_subject_named_twice_is_refused(tiny, tmp_path, capsys):
    assert cli(tiny, Folder.at(tmp_path / "runs"), "1=here", "1=there") == 2
    assert "--images names '1' twice: 'here' and 'there'" in capsys.readouterr().err


def test_pictures_are_found_by_their_folder(images, tmp_path):
    found = images_of(images[1].folder)
    assert (found.id, dict(found.description)) == (images[1].id, json.loads(json.dumps(images[1].description)))
    with pytest.raises(MissingDataError, match=f"no {SEAL} in"):
        images_of(Folder.at(tmp_path))
