"""Whatever carries a `version` gives the output of that version: a change needs a new one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import regenerate_golden
from fixed_outputs import DATASETS, Output, outputs
from regenerate_golden import differences, entry, stored

from bench.core import registry
from bench.recipes import post_steps
from eval.protocols.base import find
from eval.protocols.base import names as protocols


@pytest.fixture(scope="module")
def made() -> dict[str, Output]:
    return dict(outputs())


def test_everything_with_a_version_is_covered(made):
    names = {f"encoder {name}" for name in registry.found("encoder")}
    names |= {f"post {name}" for name in post_steps.STEPS} | {"split shared-test"}
    for name in protocols():
        names |= {f"protocol {name}"} | {f"protocol {name} network {network.name}" for network in find(name).networks}
    for name in registry.found("dataset"):
        names |= {f"dataset {name} {variant}" for variant in DATASETS[name]}
        names |= {f"dataset {name} {variant} stimuli" for variant in DATASETS[name]}
    for name, kind in registry.found("generator").items():
        names |= {f"generator {name} target {target}" for target in kind.targets}
        if kind.inputs:
            assert any(f"generator {name} pictures" in made_name for made_name in made)
    assert names <= set(made)


def test_every_metric_of_every_protocol_has_a_value_somewhere(made):
    for name in protocols():
        latents = [metric.name for metric in find(name).metrics if "images" not in metric.needs]
        values = made[f"protocol {name}"].values
        missing = [metric.name for metric, v in zip(find(name).metrics, values, strict=True) if np.isnan(v)]
        assert missing == latents
        if latents:
            assert np.isfinite(made[f"protocol {name} latents"].values).all()


def test_no_output_changed_without_a_new_version(made):
    golden = stored()
    wrong = [line for name, output in made.items() if (line := differences(name, output, golden))]
    assert not wrong, "\n".join(wrong)


def test_the_golden_file_names_nothing_that_is_gone(made):
    assert set(stored()) == set(made), "run `python tests/regenerate_golden.py`"


OUTPUT = Output(3, np.linspace(0, 1, 6).reshape(2, 3), 0.01)
GOLDEN = {"thing": entry(OUTPUT)}


def test_what_machines_may_differ_by_is_no_change():
    assert differences("thing", OUTPUT, GOLDEN) == ""
    assert differences("thing", dataclasses.replace(OUTPUT, values=OUTPUT.values + 0.009), GOLDEN) == ""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            dataclasses.replace(OUTPUT, values=OUTPUT.values + 0.1),
            "changed (by up to 0.1 (allowed 0.01)) under version 3",
        ),
        (dataclasses.replace(OUTPUT, values=OUTPUT.values[:1]), "changed (shape (1, 3), was (2, 3)) under version 3"),
        (dataclasses.replace(OUTPUT, version=4), "thing has version 4, the golden file 3: run `python tests/regener"),
    ],
)
def test_a_change_says_what_to_do(output, message):
    assert message in differences("thing", output, GOLDEN)
    assert "`python tests/regenerate_golden.py`" in differences("thing", output, GOLDEN)


def test_a_change_to_nan_is_a_change():
    values = OUTPUT.values.copy()
    values[0, 0] = np.nan
    spoilt = dataclasses.replace(OUTPUT, values=values)
    assert "raise `version`" in differences("thing", spoilt, GOLDEN)
    assert differences("thing", spoilt, {"thing": entry(spoilt)}) == ""


@pytest.fixture
def regenerated(tmp_path, monkeypatch):
    """Regenerate into a file of its own from given outputs; returns the status and what the file holds."""
    monkeypatch.setattr(regenerate_golden, "GOLDEN", tmp_path / "golden" / "outputs.json")

    def run(**found: Output):
        monkeypatch.setattr(regenerate_golden, "outputs", lambda: iter(found.items()))
        return regenerate_golden.main(), regenerate_golden.stored()

    return run


def test_regenerating_keeps_what_did_not_change_and_drops_what_is_gone(regenerated):
    assert regenerated(thing=OUTPUT, other=OUTPUT) == (0, {"other": GOLDEN["thing"], "thing": GOLDEN["thing"]})
    wobbly = dataclasses.replace(OUTPUT, values=OUTPUT.values + 0.009)
    assert regenerated(thing=wobbly) == (0, GOLDEN)


def test_regenerating_refuses_a_change_under_an_old_version(regenerated, capsys):
    regenerated(thing=OUTPUT)
    changed = dataclasses.replace(OUTPUT, values=OUTPUT.values + 1)
    assert regenerated(thing=changed) == (1, GOLDEN)
    assert "the output of thing changed" in capsys.readouterr().err
    status, held = regenerated(thing=dataclasses.replace(changed, version=4))
    assert (status, held["thing"]["version"]) == (0, 4)
