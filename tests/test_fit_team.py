"""Fits that several workers share: equal to one worker with larger batches, and failing as one."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.data
import ray.train
import torch
from safetensors.torch import load_file
from stream_shards import LABEL_NAMES, TARGET, digests, target_table, trials_of

from bench.core import cluster
from bench.core.errors import OptionError, ReconbenchError
from bench.core.storage import Folder
from bench.data.splits import ROLES
from bench.data.stream.trials import Betas, SubjectTrials
from bench.data.stream.turns import in_turn, turns
from bench.fitting.candidates import Candidate
from bench.fitting.inputs import FitInputs
from bench.fitting.plan import FitPlan, plan_stage
from bench.fitting.search import DataRefs, run_candidates
from bench.fitting.trial import FitRecord, read_fit, run_fit
from bench.recipes.parts import HeadSpec, Search, Stage

BATCH = 8
STAGE = Stage(
    "braid-mlp",
    options={"epochs": 3, "hidden": [8, 8], "batch_size": BATCH, "dropout": 0.0, "patience": 0},
    heads={"z": HeadSpec(TARGET)},
    workers=2,
)


def even(subject: int) -> SubjectTrials:
    """Trials whose training samples fill every batch of both workers; the rest of them become validation."""
    trials = trials_of(subject)
    role, train = trials.role.copy(), trials.rows("train")
    role[train[len(train) // (2 * BATCH) * (2 * BATCH) :]] = ROLES.index("validation")
    return dataclasses.replace(trials, role=role)


TRIALS = {subject: even(subject) for subject in (1, 2)}


def candidate_of(stage: Stage, subjects: tuple[int, ...] = (1,), data: str = ":session") -> Candidate:
    plan = plan_stage(stage, subjects, digests(), 0)
    return Candidate("shared", 0, {}, 0, data, plan, 0.25, Search())


@pytest.fixture(scope="module")
def refs(ray_session) -> DataRefs:
    subjects = {subject: ray.put(trials) for subject, trials in TRIALS.items()}
    blocks = [block.copy() for block in TRIALS[1].betas.blocks]
    (block,), (row,) = TRIALS[1].locate(TRIALS[1].rows("train")[:1])
    blocks[block][row, 0] = np.nan
    spoilt = {1: ray.put(dataclasses.replace(TRIALS[1], betas=Betas(arrays=tuple(blocks))))}
    return DataRefs({":session": subjects, "spoilt:session": spoilt}, {TARGET: ray.put(target_table())}, LABEL_NAMES)


def run(chosen: list[Candidate], refs: DataRefs, runs: Folder) -> list[FitRecord]:
    return run_candidates(chosen, refs, runs, lambda units=1, note="": None)


def state(runs: Folder, plan: FitPlan) -> dict[str, torch.Tensor]:
    (path,) = Path(runs.path, "fits", plan.id, "state").glob("*.safetensors")
    return load_file(path)


def alone(runs: Folder, stage: Stage = STAGE) -> tuple[FitPlan, FitRecord]:
    """The same fit by one worker, in this process, whose batches are twice as large."""
    larger = dataclasses.replace(stage, options={**stage.options, "batch_size": 2 * BATCH}, workers=1)
    plan = plan_stage(larger, (1,), digests(), 0)
    inputs = FitInputs({1: TRIALS[1]}, {TARGET: target_table()}, LABEL_NAMES)
    return plan, run_fit(plan, inputs, runs, torch.device("cpu"), lambda step, metrics: None)


def assert_same_state(runs: Folder, plan: FitPlan, other: FitPlan) -> None:
    """Adam divides by the gradient's own size: what is rounded in a gradient near zero shows in the parameter."""
    found, expected = state(runs, plan), state(runs, other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_an_epoch_is_dealt_in_turn(ray_session):
    for batches, each in ((6, 3), (7, 3)):
        shares = in_turn().configure(
            {"1": turns(batches * BATCH - 1, BATCH)}, world_size=2, worker_handles=None, worker_node_ids=None
        )
        take = ray.remote(num_cpus=0.5)(lambda share: [[row["turn"] for row in share["1"].iter_rows()] for _ in "ab"])
        assert ray.get([take.remote(share) for share in shares]) == [
            [list(range(worker, 2 * each, 2))] * 2 for worker in range(2)
        ]


@dataclasses.dataclass
class Failures:
    """A search none of whose fits comes to an end, and what it said."""

    spoilt: Candidate
    large: Candidate
    runs: Folder
    said: str


@pytest.fixture(scope="module")
def failures(refs, tmp_path_factory) -> Failures:
    """A fit whose data hold NaN, and one with fewer batches than workers, in one search."""
    runs = Folder.at(tmp_path_factory.mktemp("failures"))
    options = {**STAGE.options, "batch_size": 96}
    large = dataclasses.replace(candidate_of(dataclasses.replace(STAGE, options=options)), recipe="too-large")
    spoilt = candidate_of(STAGE, data="spoilt:session")
    with pytest.raises(ReconbenchError) as raised:
        run([spoilt, large], refs, runs)
    return Failures(spoilt, large, runs, str(raised.value))


def test_what_a_worker_raises_is_the_fits_failure(failures):
    assert re.search(r"every fit of shared/0.* failed; the first: ValueError: .*subject 1", failures.said)
    record = read_fit(failures.runs, failures.spoilt.plan.id)
    assert (record.status, record.error["type"]) == ("failed", "ValueError")
    assert not (failures.runs / "fits" / failures.spoilt.plan.id / "team").exists()


def test_two_workers_do_what_one_does_with_batches_twice_as_large(refs, tmp_path):
    """Although a worker is killed after an epoch, as the kernel would do it: the fit continues from its checkpoint."""
    runs = Folder.at(tmp_path)
    disturbed = candidate_of(STAGE)
    mark = tmp_path / "killed"

    @dataclasses.dataclass(frozen=True)
    class Deadly(SubjectTrials):
        """Trials whose reading kills one process, once, after its first epoch."""

        def z(self, rows, out=None):
            done = Path(runs.path, "fits", disturbed.plan.id, "checkpoint").glob("*.safetensors")
            if any(done) and not mark.exists() and ray.train.get_context().get_world_rank() == 1:
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().z(rows, out)

    deadly = ray.put(Deadly(**{f.name: getattr(TRIALS[1], f.name) for f in dataclasses.fields(TRIALS[1])}))
    (record,) = run([disturbed], dataclasses.replace(refs, subjects={":session": {1: deadly}}), runs)
    assert mark.exists()
    plan, reference = alone(runs)
    assert_same_state(runs, disturbed.plan, plan)
    assert record.status == "ok"
    assert record.validation_correlation == pytest.approx(reference.validation_correlation, abs=1e-3)
    assert record.costs["train_trials"] == reference.costs["train_trials"]
    folder = runs / "fits" / disturbed.plan.id
    assert not folder.exists("team")
    assert not folder.exists("checkpoint")


def test_more_workers_than_batches(failures, refs, monkeypatch):
    record = read_fit(failures.runs, failures.large.plan.id)
    assert record.status == "failed"
    assert "subject 1 has 96 training samples: batches of 96 are too few for 2" in record.error["message"]
    monkeypatch.setattr(
        "bench.fitting.search._tune", lambda *_: None
    )  # it has been tried: only what is said is asked for
    with pytest.raises(ReconbenchError, match="subject 1 has 96 training samples: batches of 96 are too few for 2"):
        run([failures.large], refs, failures.runs)


def test_more_workers_than_this_machine_has_places_for(refs, tmp_path):
    many = dataclasses.replace(STAGE, workers=64)
    with pytest.raises(OptionError, match="a stage wants 64 workers; there are 2 CPUs to place them on"):
        run([candidate_of(many)], refs, Folder.at(tmp_path))


def test_a_cluster_of_others_may_still_grow(ray_session, monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster.places(64) == 1
    assert "wants 64 workers, the cluster has 2 CPUs: its fits wait for more" in caplog.text


def test_as_many_teams_at_once_as_have_places(ray_session, monkeypatch):
    assert [cluster.places(workers) for workers in (1, 2)] == [2, 1]
    monkeypatch.setenv("RECONBENCH_GPUS", "9")
    assert cluster.places(4) == 2


def test_an_encoder_that_does_not_train_in_batches_has_one_worker():
    ridge = dataclasses.replace(STAGE, encoder="ridge", options={})
    with pytest.raises(OptionError, match="stage 'fit': 2 workers cannot share a fit of encoder 'ridge'"):
        plan_stage(ridge, (1,), digests(), 0)


def test_there_is_at_least_one_worker():
    with pytest.raises(OptionError, match="stage 'fit': workers is 0; at least one fits"):
        dataclasses.replace(STAGE, workers=0)


def test_workers_are_part_of_the_fits_identity():
    plans = [plan_stage(dataclasses.replace(STAGE, workers=n), (1,), digests(), 0) for n in (1, 2)]
    assert plans[0].id != plans[1].id


def test_a_team_that_the_scheduler_stops_gives_its_places_back(refs, tmp_path):
    runs = Folder.at(tmp_path)
    search = Search(scheduler="asha", grace=1, reduction=2)
    rates = [{"epochs": 6, "learning_rate": rate} for rate in (1e-2, 1e-7)]
    stages = [dataclasses.replace(STAGE, options={**STAGE.options, **values}) for values in rates]
    chosen = [
        dataclasses.replace(candidate_of(stage, (1, 2)), config=number, search=search)
        for number, stage in enumerate(stages)
    ]
    records = run(chosen, refs, runs)
    assert [record.status for record in records] == ["ok", "stopped"]
    assert records[0].costs["train_trials"] == sum(len(trials.rows("train")) for trials in TRIALS.values())
    assert any("first.2" in name for name in state(runs, chosen[0].plan))
    assert 1 <= records[1].steps < 6
    ready = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    try:
        assert ready.wait(30), ray.available_resources()
    finally:
        ray.util.remove_placement_group(ready)
