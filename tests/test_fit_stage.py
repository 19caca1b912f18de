"""Stage `fit` alone: from shards to fits and selections, the same ones that a sweep makes, and on to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import fit, predict
from bench.core.storage import Folder
from bench.fitting.trial import FIT_RECORD


def arguments(shards: Folder, runs: Path, *more: str) -> list[str]:
    """Return the command line of the smallest search."""
    base = ["--shards", shards.uri, "--runs", str(runs), "--recipes", "tiny-ridge,tiny-knn", "--trials", "2"]
    return [*base, *more]


@pytest.fixture(scope="module")
def fitted(tiny_shards: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished fit stage. Never change what is in it."""
    runs = tmp_path_factory.mktemp("fit") / "runs"
    assert fit.main(arguments(tiny_shards, runs)) == 0
    return runs


def selection(runs: Path, recipe: str) -> dict:
    return json.loads((runs / "selections" / f"{recipe}.json").read_text())


@pytest.mark.parametrize("recipe", ["tiny-ridge", "tiny-knn"])
def test_the_best_finished_fit_of_each_subject_is_selected(fitted: Path, recipe: str) -> None:
    chosen = selection(fitted, recipe)
    assert (chosen["recipe"], chosen["configurations_tried"]) == (recipe, 2)
    assert set(chosen["subjects"]) == {"1", "2"}
    records = {p.parent.name: json.loads(p.read_text()) for p in fitted.glob(f"fits/*/{FIT_RECORD}")}
    plans = {p.parent.name: json.loads(p.read_text()) for p in fitted.glob("fits/*/plan.json")}
    for subject, mine in chosen["subjects"].items():
        encoder = plans[mine["fit"]]["encoder"]
        rivals = [n for n, p in plans.items() if p["encoder"] == encoder and p["subjects"] == [int(subject)]]
        assert mine["score"] == max(records[name]["validation_correlation"] for name in rivals)
        assert records[mine["fit"]]["validation_correlation"] == mine["score"]


def test_a_rerun_fits_nothing_and_selects_the_same(
    fitted: Path, tiny_shards: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a finished fit was started again")

    monkeypatch.setattr("bench.fitting.search._tune", never)
    before = selection(fitted, "tiny-knn")
    assert fit.main(arguments(tiny_shards, fitted)) == 0
    assert selection(fitted, "tiny-knn") == before
    assert f"tiny-knn  subject 1  fit {before['subjects']['1']['fit']}  validation corr" in capsys.readouterr().err


def test_what_it_prints_is_what_predict_takes(fitted: Path, tiny_shards: Folder) -> None:
    chosen = selection(fitted, "tiny-knn")["subjects"]["2"]["fit"]
    given = ["--runs", str(fitted), "--fit", chosen, "--shards", tiny_shards.uri, "--test-images", "4"]
    assert predict.main(given) == 0
    (identity,) = (json.loads(p.read_text()) for p in fitted.glob("predictions/*/identity.json"))
    assert (identity["description"]["fit"], identity["rows"]) == (chosen, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--recipes", "tiny-knn,tiny-knn"], "two recipes have one name: tiny-knn, tiny-knn"),
        (["--recipes", "tiny-kn"], "unknown recipe 'tiny-kn'. Did you mean 'tiny-knn'?"),
        (["--subjects", "1,9"], "hold no session of subject 9; they hold [1, 2]"),
        (["--shards", "nowhere"], "not a finished set of shards"),
    ],
)
def test_bad_input_is_one_line(
    change: list[str], message: str, tiny_shards: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit.main([*arguments(tiny_shards, tmp_path / "runs"), *change]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "runs" / "selections").exists()
