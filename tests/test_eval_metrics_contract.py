"""What every formula that the folder lists must do, and the class that carries it through batches and processes."""

import importlib

import pytest
import torch
from eval_fakes import FORMULAS, sides

import eval.metrics
from eval._listing import names
from eval.metrics.base import Formula
from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.training import PerImageMetric

CASES = [(formula, None) for formula in FORMULAS.values()]
CASES.append((TWO_WAY_IDENTIFICATION, Identification(transpose=True, ties="half")))
every = pytest.mark.parametrize(("formula", "readout"), CASES, ids=lambda each: getattr(each, "name", "") or "")


def test_every_file_holds_formulas_that_are_called_as_their_constants():
    for name in names(eval.metrics):
        constants = vars(importlib.import_module(f"eval.metrics.{name}"))
        held = {constant: value for constant, value in constants.items() if isinstance(value, Formula)}
        assert held == {formula.name.upper().replace("-", "_"): formula for formula in held.values()}
        assert held
        assert all(FORMULAS[formula.name] is formula for formula in held.values())


@every
def test_a_value_an_image_and_none_better_than_the_truth(formula, readout):
    shown, truth = sides(formula)
    values, perfect = formula(shown, truth, readout), formula(truth, truth, readout)
    assert values.shape == perfect.shape == (len(truth),)
    assert values.dtype == perfect.dtype == torch.float64
    assert values.isfinite().all()
    assert values.std() > 0
    gain = (perfect - values) * (1 if formula.higher_is_better else -1)
    assert gain.min() >= -1e-9
    assert gain.mean() > 1e-3


@every
def test_permuting_images_permutes_values(formula, readout):
    shown, truth = sides(formula)
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(formula(shown[order], truth[order], readout), formula(shown, truth, readout)[order])


@every
def test_low_precision_input_is_computed_in_double(formula, readout):
    half = [side.half() for side in sides(formula)]
    expected = formula(*(side.double() for side in half), readout)
    torch.testing.assert_close(formula(*half, readout), expected, rtol=0, atol=1e-6)


@every
def test_sides_of_two_shapes_are_refused(formula, readout):
    shown, truth = sides(formula)
    with pytest.raises(ValueError, match="must have one shape"):
        formula(shown[1:], truth, readout)


@every
@pytest.mark.parametrize("batch", [1, 7])
def test_batches_of_any_size_give_the_same_values(formula, readout, batch):
    (shown, truth), metric = sides(formula), PerImageMetric(formula, readout)
    assert metric.higher_is_better == formula.higher_is_better
    metric.update(truth[:3], truth[:3])
    metric.reset()
    for pair in zip(shown.split(batch), truth.split(batch), strict=True):
        metric.update(*pair)
    expected = formula(shown, truth, readout)
    torch.testing.assert_close(metric.per_image(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(metric.compute(), expected.mean(), rtol=0, atol=1e-12)


@every
def test_two_instances_merge_into_the_whole(formula, readout):
    shown, truth = sides(formula)
    first, second = PerImageMetric(formula, readout), PerImageMetric(formula, readout)
    first.update(shown[:4], truth[:4])
    second.update(shown[4:], truth[4:])
    second.merge_state(first)
    torch.testing.assert_close(second.per_image(), formula(shown, truth, readout), rtol=0, atol=1e-12)


def test_a_formula_that_reads_what_it_cannot_compare_is_refused():
    with pytest.raises(ValueError, match="formula 'x' reads pixels and is compared by <function"):
        Formula("x", "pixel", "pixels", lambda x, y: x)


def test_the_documented_use_runs():
    """The example of `eval.metrics`, as it stands there."""
    lines = eval.metrics.__doc__.splitlines()
    example = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    shown, truth = sides(FORMULAS["pixcorr"])
    given = {"reconstructions": shown, "truth": truth, "batches": [(shown[:5], truth[:5]), (shown[5:], truth[5:])]}
    exec(example, given)
    torch.testing.assert_close(given["values"], FORMULAS["pixcorr"](shown, truth))
    torch.testing.assert_close(given["mean"], given["values"].mean())
