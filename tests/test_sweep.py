"""The main job end to end on the tiny preset: board, resumption, equality after an interruption, and bad input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_sweep import arguments, values
from sweep_summary import summary

from bench import sweep
from bench.core.errors import BadDataError
from bench.core.storage import Folder
from bench.data.shards.manifest import MANIFEST
from bench.fitting import trial
from bench.leaderboard import check_board
from bench.sweeping import flow

GOLDEN = Path(__file__).parent / "golden" / "sweep.json"


def run(argv: Sequence[str]) -> int:
    """Run the stage as the command line does."""
    return sweep.main(list(argv))


def files(runs: Path) -> dict[str, tuple[int, bytes]]:
    """Return modification time and content of everything that is a result."""
    kept = [p for p in sorted(runs.rglob("*")) if p.is_file() and p.name not in {"stages.json"}]
    return {str(p.relative_to(runs)): (p.stat().st_mtime_ns, p.read_bytes()) for p in kept}


def test_board_stands_with_its_controls(finished: Path) -> None:
    board = check_board(Folder.at(finished), Folder.at(finished))
    (table,) = board["tables"]
    assert [row["name"] for row in table["rows"] if row["kind"] == "system"] != []
    records = [json.loads(p.read_text()) for p in finished.glob("scores/*/record.json")]
    names = {record["name"] for record in records}
    assert names == {"tiny-ridge", "tiny-knn", "shuffled", "mean-image", "chance", "oracle"}
    assert {record["status"] for record in records} == {"ok"}
    assert {record["dataset"]["test_stimuli"] for record in records} == {16}
    for name in ("leaderboard.md", "leaderboard.html"):
        assert "tiny-knn" in (finished / name).read_text()


def test_controls_are_where_they_must_be(finished: Path) -> None:
    found = values(finished)
    assert found["oracle"]["pixcorr"] > 0.8
    assert found["oracle"]["scene-low"] > 0.95
    assert found["mean-image"]["scene-low"] == pytest.approx(0.5, abs=1e-9)
    assert found["chance"]["scene-high"] == pytest.approx(0.5, abs=0.1)
    assert found["oracle"]["pixcorr"] > max(found["tiny-ridge"]["pixcorr"], found["tiny-knn"]["pixcorr"])


def test_identity_chain_leads_from_score_to_fits(finished: Path) -> None:
    record = next(
        r for r in (json.loads(p.read_text()) for p in finished.glob("scores/*/record.json")) if r["name"] == "tiny-knn"
    )
    for subject, images in record["identity"]["images"].items():
        assert (finished / "images" / images["id"] / "images.json").exists()
        prediction = record["identity"]["predictions"][subject]
        assert images["description"]["source"] == prediction["id"]
        (fit,) = record["identity"]["fits"][subject]
        assert prediction["description"]["fit"] == fit["id"]
        assert (finished / "fits" / fit["id"] / trial.FIT_RECORD).exists()
        assert record["leakage"] == []


def test_addresses_and_board_are_those_that_are_stored(finished: Path) -> None:
    """Moving code changes nothing that is computed. A change on purpose raises a version, says so, and stores anew:

    RECONBENCH_STORE_GOLDEN=1 python -m pytest tests/test_sweep.py -k that_are_stored
    """
    made = summary(finished)
    if os.environ.get("RECONBENCH_STORE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    stored = json.loads(GOLDEN.read_text())
    assert made["addresses"] == stored["addresses"]
    assert made["rows"].keys() == stored["rows"].keys()
    for name, metrics in stored["rows"].items():
        # What processors differ by: a rounded pixel here and there.
        assert made["rows"][name] == pytest.approx(metrics, abs=2e-3), name


def test_rerun_repeats_nothing(finished: Path, tiny_shards: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(finished)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("finished work was repeated")

    monkeypatch.setattr("bench.fitting.search._tune", never)
    monkeypatch.setattr("bench.rendering.jobs.run_plans", never)
    monkeypatch.setattr("bench.score.write_score", never)
    assert run(arguments(tiny_shards, finished)) == 0
    after = files(finished)
    assert {name: content for name, (_, content) in after.items()} == {n: c for n, (_, c) in before.items()}
    unchanged = [name for name in before if name.split("/")[0] in {"fits", "predictions", "images", "scores"}]
    assert all(after[name][0] == before[name][0] for name in unchanged)


@pytest.mark.parametrize("stage", ["_predict", "_score"])
def test_interrupted_sweep_ends_like_an_undisturbed_one(
    stage: str, finished: Path, tiny_shards: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    # As a kill before this stage would leave it: later results are gone, some of the earlier ones too.
    for folder in {"_predict": ["predictions", "images", "scores"], "_score": ["scores"]}[stage]:
        shutil.rmtree(runs / folder)
    some_fit = sorted((runs / "fits").glob(f"*/{trial.FIT_RECORD}"))[0]
    some_fit.unlink()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flow, stage, killed)
        assert run(arguments(tiny_shards, runs)) == 130
    assert not (runs / "scores").exists()
    assert run(arguments(tiny_shards, runs)) == 0
    assert values(runs) == values(finished)


def test_folder_of_another_configuration_is_refused(
    finished: Path, tiny_shards: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    assert run(arguments(tiny_shards, finished, "--seed", "7")) == 2
    said = capsys.readouterr().err
    assert "belongs to a sweep of another configuration" in said
    assert "seed: there 0, now 7" in said
    assert files(finished) == before


def test_no_resume_refuses_results(finished: Path, tiny_shards: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(tiny_shards, finished, "--no-resume")) == 2
    assert "already holds results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--recipes", "tiny-rigde"], "unknown recipe 'tiny-rigde'. Did you mean 'tiny-ridge'?"),
        (["--subjects", "1,9"], "hold no session of subject 9; they hold [1, 2]"),
        (["--sessions", "4"], "not [4]"),
        (["--test-images", "5000"], "5000 test pictures were asked for"),
        (["--protocol", "scenes-2"], "scenes-1"),
        (["--shards", "nowhere"], "not a finished set of shards"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_score(
    change: list[str], message: str, tiny_shards: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments(tiny_shards, tmp_path / "runs"), *change]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "runs" / "scores").exists()
    assert not (tmp_path / "runs" / "leaderboard.json").exists()


def test_corrupt_shard_is_named(tiny_shards: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Path(tiny_shards.path).parent
    shutil.copytree(dataset, tmp_path / "nsd")
    copy = tmp_path / "nsd" / Path(tiny_shards.path).name
    entry = json.loads((copy / MANIFEST).read_text())["files"][0]["path"]
    content = bytearray((copy / entry).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / entry).write_bytes(bytes(content))
    assert run(arguments(Folder.at(copy), tmp_path / "runs")) == 2
    said = capsys.readouterr().err
    assert entry in said.replace("\n", "")
    assert "its manifest says" in said
    assert not (tmp_path / "runs" / "scores").exists()


def test_fit_never_receives_test_trials(tiny_shards: Folder, ray_session: None) -> None:
    import ray

    from bench.data.shard_set import open_data
    from bench.fitting.inputs import FitInputs, streams
    from bench.fitting.plan import FitPlan

    data = open_data(tiny_shards)
    both = ray.get(data.load([1], (("train", "test"),))[0][1])
    plan = FitPlan(("knn", 1), {}, {}, (1,), "", None, {}, "session", 0)
    with pytest.raises(BadDataError, match="test trials were handed to a fit"):
        streams(plan, FitInputs({1: both}, {}), torch.device("cpu"), {})
