"""The options of ridge regression and the ranges they are held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders._shared.checks import check_numbers, check_positive, check_words
from encoders.ridge.penalties import Method, Scope

Precision = Literal["float64", "float32"]


@dataclass(frozen=True)
class RidgeOptions:
    """Options of `ridge`.

    Attributes:
        alpha: The penalty on squared weights, as scikit-learn's: one number, or one for each head. None selects it.
        select: How it is selected: generalised cross-validation, leave-one-out, k folds that keep the repeats of a
            stimulus together, or the validation trials. The first two treat repeats as independent rows; with
            repeated stimuli prefer folds, or a stage that averages them.
        alphas: The grid to select from. An alpha too small for the arithmetic (its errors are not finite) is never
            selected.
        scope: Select one alpha (and one scale a band) for a head ("global") or for each target.
        folds: Number of folds of "kfold".
        standardise_voxels: Divide each voxel by its standard deviation over the training rows (divisor n; with
            Brain-Diffuser's n - 1 an alpha means n / (n - 1) times as much).
        form: Decompose the Gram matrix of voxels ("primal"), of trials ("dual"), or the smaller of the two.
        block: Most targets in memory at once; each block costs one pass over the training trials.
        precision: Arithmetic of the fit and of predictions.
        bands: Banded ridge (Nunez-Elizalde et al. 2019): ROI expressions, each the voxels of one band with a scale of
            its own. Voxels of no band form one more. Empty: plain ridge.
        candidates: Sets of band scales tried; the first scales all bands alike. Each costs a factorisation.
        concentration: Of the Dirichlet distributions that the scales are drawn from, in turn. Values below 1 favour
            few bands.
        bands_seed: Seed of the draw.
    """

    alpha: float | dict[str, float] | None = None
    select: Method = "gcv"
    alphas: tuple[float, ...] = (1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6)
    scope: Scope = "global"
    folds: int = 5
    standardise_voxels: bool = False
    form: Literal["auto", "primal", "dual"] = "auto"
    block: int = 8192
    precision: Precision = "float64"
    bands: tuple[str, ...] = ()
    candidates: int = 20
    concentration: tuple[float, ...] = (0.1, 1.0)
    bands_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_words(self)
        given = ("alpha",) if self.alpha is not None else ()
        check_positive(self, (*given, "alphas", "block", "candidates", "concentration"))
        check_numbers(self, ("folds",), lambda folds: folds >= 2, "at least 2")
        if len(set(self.bands)) < len(self.bands):
            raise ValueError(f"option bands is {self.bands!r}; every expression must be given once")

    def alphas_of(self, head: str) -> tuple[float, ...]:
        """Return the alphas that a head may have: its fixed one, or the grid."""
        if self.alpha is None:
            return self.alphas
        return (float(self.alpha[head] if isinstance(self.alpha, dict) else self.alpha),)
