"""Ridge regression from voxels to targets, closed form: the linear systems of the field.

Brain-Diffuser (Ozcelik & VanRullen 2023) fixes alpha at 50,000 (VDVAE latents), 60,000 (CLIP-vision tokens) and 100,000
(CLIP-text tokens); Takagi & Nishimoto 2023 select it per target on a grid; "one regressor a token" is the same as one
wide head, because ridge treats targets independently. For the same reason scaling targets would change no prediction,
so targets are only centred.

Arithmetic: in float64 weights agree with scikit-learn's `Ridge` to 1e-8. In float32, which halves memory and suits
GPUs, predictions agree with float64 to 1e-3 of a target's standard deviation for alphas of at least 1e-4 times the
largest eigenvalue of the Gram matrix. Brain-Diffuser's are: with 8,859 trials of 15,724 z-scored voxels the trace is
1.4e8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from encoders.base import Block, Encoder, Head, Runtime, SubjectData
from encoders.checks import check_alone, check_choice, check_fit, check_positive, check_voxels
from encoders.correlation import validation_correlation
from encoders.gram import FORMS, Factorisation, as_tensor, factorise
from encoders.penalties import Scope, choose
from encoders.ridge_targets import PieceErrors, prepare_selection, solve
from encoders.state import read_state, write_state
from encoders.target_blocks import TargetBlocks
from encoders.training_rows import TrainingRows, columns_key, group_by_columns, pieces_of

_LOG = logging.getLogger(__name__)
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class RidgeOptions:
    """Options of `ridge`.

    Attributes:
        alpha: The penalty on squared weights, as scikit-learn's: one number, or one for each head. None selects it.
        select: How it is selected: generalised cross-validation, leave-one-out, k folds that keep the repeats of a
            stimulus together, or the validation trials. The first two treat repeats as independent trials; with
            repeated stimuli prefer folds, or average the repeats.
        alphas: The grid to select from.
        scope: Select one alpha for a head ("global") or for each target.
        folds: Number of folds of "kfold".
        average_repeats: Average the trials of a stimulus before fitting (as Brain-Diffuser).
        standardise_voxels: Divide each voxel by its standard deviation over the training rows.
        form: Decompose the Gram matrix of voxels ("primal"), of trials ("dual"), or the smaller of the two.
        block: Most targets in memory at once; each block costs one pass over the training trials.
        precision: Arithmetic of the fit and of predictions.
    """

    alpha: float | dict[str, float] | None = None
    select: Literal["gcv", "loo", "kfold", "validation"] = "gcv"
    alphas: tuple[float, ...] = (1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6)
    scope: Scope = "global"
    folds: int = 5
    average_repeats: bool = False
    standardise_voxels: bool = False
    form: Literal["auto", "primal", "dual"] = "auto"
    block: int = 8192
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_choice(self, "select", ("gcv", "loo", "kfold", "validation"))
        check_choice(self, "scope", ("global", "per-target"))
        check_choice(self, "form", ("auto", *FORMS))
        check_choice(self, "precision", tuple(_DTYPES))
        check_positive(self, ("alphas", "block"))
        fixed = self.alpha.values() if isinstance(self.alpha, dict) else [] if self.alpha is None else [self.alpha]
        if any(alpha <= 0 for alpha in fixed):
            raise ValueError(f"option alpha is {self.alpha!r}; it must be greater than 0")
        if self.folds < 2:
            raise ValueError(f"option folds is {self.folds}; it must be at least 2")


class Ridge(Encoder):
    """One independent ridge regression for each subject; heads with the same voxels share a factorisation."""

    version = 1
    Options: ClassVar[type] = RidgeOptions
    precompute_options = ("average_repeats", "standardise_voxels", "form", "precision")

    options: RidgeOptions

    def __init__(self, options: RidgeOptions) -> None:
        super().__init__(options)
        self._heads: list[Head] = []
        self._n_voxels: dict[int, int] = {}
        self._factors: dict[tuple[int, str], Factorisation] = {}
        self._targets: dict[str, torch.Tensor] = {}
        self._blocks: TargetBlocks | None = None

    def precompute(self, data: Mapping[int, SubjectData], heads: Sequence[Head]) -> Mapping[str, np.ndarray]:
        """Return the factorisation of each subject and set of columns; targets and alphas do not enter."""
        check_fit(data, heads)
        arrays: dict[str, np.ndarray] = {}
        for subject, trials in data.items():
            rows = self._rows(trials, torch.device("cpu"))
            for key, group in group_by_columns(heads, subject).items():
                for name, tensor in self._factorise(rows, group[0][1]).tensors().items():
                    arrays[f"{subject}/{key}/{name}"] = tensor.numpy()
        return arrays

    def fit(self, data: Mapping[int, SubjectData], heads: Sequence[Head], runtime: Runtime) -> None:
        """Solve every head of every subject.

        Raises:
            ValueError: If the data cannot be fitted, a fixed alpha is missing for a head, or "validation" selects and
                a subject has no validation trials.
        """
        check_alone("ridge", runtime)
        check_fit(data, heads)
        self._check_alphas(data, heads)
        self._heads, self._n_voxels = list(heads), {subject: trials.n_voxels for subject, trials in data.items()}
        self._factors, self._targets = {}, {}
        self._blocks = TargetBlocks.temporary()
        for subject, trials in data.items():
            rows = self._rows(trials, runtime.device)
            for key, group in group_by_columns(heads, subject).items():
                self._fit_group(rows, key, group, runtime)
        runtime.report(0, {"validation_correlation": validation_correlation(self.predict, data, heads)})

    def _rows(self, trials: SubjectData, device: torch.device) -> TrainingRows:
        """Return the training rows in the option's arithmetic."""
        return TrainingRows(trials, self.options.average_repeats, _DTYPES[self.options.precision], device)

    def _factorise(self, rows: TrainingRows, head: Head) -> Factorisation:
        """Factorise the columns of a head."""
        columns = None if head.columns is None else head.columns[rows.data.subject]
        form = None if self.options.form == "auto" else self.options.form
        factor = factorise(rows, columns, self.options.standardise_voxels, form)
        shape = (factor.rows, factor.mean.numel())
        _LOG.info("subject %d: %s ridge of %d rows and %d voxels", rows.data.subject, factor.form, *shape)
        return factor

    def _check_alphas(self, data: Mapping[int, SubjectData], heads: Sequence[Head]) -> None:
        """Raise unless every head has an alpha or can have one selected."""
        if isinstance(self.options.alpha, dict):
            missing = [head.name for head in heads if head.name not in self.options.alpha]
            if missing:
                raise ValueError(f"option alpha names heads {sorted(self.options.alpha)}; missing: {missing}")
        elif self.options.alpha is None and self.options.select == "validation":
            without = [subject for subject, trials in data.items() if trials.n_trials("validation") == 0]
            if without:
                raise ValueError(
                    f"alpha cannot be selected on validation trials: subjects {without} have none; "
                    "allowed without them: gcv, loo, kfold, or a fixed alpha"
                )

    def _fit_group(self, rows: TrainingRows, key: str, group: list[tuple[int, Head]], runtime: Runtime) -> None:
        """Fit the heads that share a factorisation, block after block of targets."""
        subject, prefix = rows.data.subject, f"{rows.data.subject}/{key}/"
        # A sweep over alphas finds the factorisation computed by its first trial.
        cached = {name: array for name, array in runtime.precomputed.items() if name.startswith(prefix)}
        if cached:
            named = {name.removeprefix(prefix): as_tensor(array, rows.device) for name, array in cached.items()}
            factor = Factorisation.from_tensors(named)
        else:
            factor = self._factorise(rows, group[0][1])
        options, selection = self.options, None
        if options.alpha is None:
            selection = prepare_selection(options.select, factor, rows, options.folds, runtime.seed)
        numbers = {head.name: number for number, head in group}
        errors: dict[str, list[PieceErrors]] = {name: [] for name in numbers}
        for pieces in pieces_of([head for _, head in group], options.block):
            for part, cross in solve(factor, rows, pieces, selection, options.alphas):
                self._stored_blocks.put(subject, numbers[part.piece.head.name], part.piece.start, cross)
                errors[part.piece.head.name].append(part)
        for name, parts in errors.items():
            self._targets[f"mean/{subject}/{numbers[name]}"] = torch.cat([part.mean for part in parts]).cpu()
            self._targets[f"alpha/{subject}/{numbers[name]}"] = self._choose(name, parts).cpu()
        # Predictions need no coordinates of training rows; the state drops them.
        self._factors[subject, key] = factor.to(torch.device("cpu"))

    def _choose(self, head: str, parts: list[PieceErrors]) -> torch.Tensor:
        """Return `(D,)` float64 alphas of a head."""
        if self.options.alpha is None:
            errors = torch.cat([part.errors for part in parts], dim=1)
            variance = torch.cat([part.variance for part in parts])
            chosen = choose(errors, variance, self.options.alphas, self.options.scope)
            _LOG.info("head %s: alpha %g to %g selected", head, float(chosen.min()), float(chosen.max()))
            return chosen
        alpha = self.options.alpha[head] if isinstance(self.options.alpha, dict) else self.options.alpha
        return torch.full((sum(part.mean.numel() for part in parts),), float(alpha), dtype=torch.float64)

    @property
    def _stored_blocks(self) -> TargetBlocks:
        """The target blocks of the fit; ValueError where there was none."""
        if self._blocks is None:
            raise ValueError("this ridge was not fitted; fit or load it first")
        return self._blocks

    def predict(self, voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
        """Yield predictions block by block, as stored; see `Encoder.predict`."""
        check_voxels(voxels, subject, self._n_voxels)  # here and not in the generator, to fail when called
        return self._predict(voxels, subject)

    def _predict(self, voxels: torch.Tensor, subject: int) -> Iterator[Mapping[str, Block]]:
        """Yield `(x B / (s + alpha)) C + mean` for each stored block."""
        for key, group in group_by_columns(self._heads, subject).items():
            factor = self._factors[subject, key].to(voxels.device)
            projected = factor.project(voxels)
            for number, head in group:
                for start, cross, alpha, mean in self._stored(subject, number, voxels.device):
                    values = _apply(projected, factor.eigenvalues, cross, alpha) + mean
                    yield {head.name: Block(start, values.float())}

    def _stored(
        self, subject: int, number: int, device: torch.device
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield start, cross-products `(r, width)`, alphas and target means `(width,)` of each block of a head."""
        for start, cross in self._stored_blocks.blocks(subject, number):
            run = slice(start, start + cross.shape[1])
            alpha = self._targets[f"alpha/{subject}/{number}"][run]
            mean = self._targets[f"mean/{subject}/{number}"][run]
            yield start, cross.to(device), alpha.to(device, cross.dtype), mean.to(device)

    def weights(self, head: str, subject: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield the linear map of a head in blocks of targets, for maps of weights over the cortex.

        Args:
            head: Name of the head.
            subject: A fitted subject.

        Yields:
            First target, `(V_head, width)` weights of raw voxels, `(width,)` intercepts, in the fit's arithmetic.

        Raises:
            ValueError: If the head or subject was not fitted.
        """
        names = [each.name for each in self._heads]
        if head not in names or subject not in self._n_voxels:
            raise ValueError(
                f"no fit of head {head!r}, subject {subject}: {names}, {sorted(self._n_voxels)} are fitted"
            )
        number = names.index(head)
        factor = self._factors[subject, columns_key(self._heads[number], subject)]
        for start, cross, alpha, mean in self._stored(subject, number, factor.mean.device):
            weights = _apply(factor.basis, factor.eigenvalues, cross, alpha) / factor.scale[:, None]
            yield start, weights, mean - factor.mean @ weights

    def alphas(self, head: str, subject: int) -> torch.Tensor:
        """Return the `(D,)` float64 alphas used for a fitted head and subject."""
        return self._targets[f"alpha/{subject}/{[each.name for each in self._heads].index(head)}"]

    def save(self, directory: Path) -> None:
        """Write factorisations and target blocks; see `Encoder.save`."""
        self._stored_blocks.copy_to(directory)
        tensors = dict(self._targets)
        for (subject, key), factor in self._factors.items():
            tensors |= {f"factor/{subject}/{key}/{name}": tensor for name, tensor in factor.tensors().items()}
        forms = {f"{subject}/{key}": factor.form for (subject, key), factor in self._factors.items()}
        facts = {"n_voxels": {str(subject): count for subject, count in self._n_voxels.items()}, "forms": forms}
        write_state(directory, "ridge", facts, self._heads, tensors)

    @classmethod
    def load(cls, options: RidgeOptions, directory: Path) -> Ridge:
        """Return the ridge that was saved; its blocks stay in the directory and are read when predicting."""
        facts, heads, tensors = read_state(directory, "ridge")
        ridge = cls(options)
        ridge._heads, ridge._blocks = heads, TargetBlocks(directory)
        ridge._n_voxels = {int(subject): count for subject, count in facts["n_voxels"].items()}
        ridge._targets = {name: tensor for name, tensor in tensors.items() if not name.startswith("factor/")}
        for pair in facts["forms"]:
            prefix = f"factor/{pair}/"
            named = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            ridge._factors[int(pair.split("/")[0]), pair.split("/")[1]] = Factorisation.from_tensors(named)
        return ridge

    @property
    def n_parameters(self) -> int:
        """Weights and intercepts of the linear maps: voxels of the head plus one, times targets, over subjects."""
        return sum(
            (self._factors[subject, columns_key(head, subject)].mean.numel() + 1) * head.size
            for subject in self._n_voxels
            for head in self._heads
        )


def _apply(rows: torch.Tensor, eigenvalues: torch.Tensor, cross: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return `rows @ diag(1 / (s + alpha_t)) @ cross` for every target t.

    Args:
        rows: `(N, r)`.
        eigenvalues: `(r,)`.
        cross: `(r, width)`.
        alpha: `(width,)`.
    """
    # One alpha scales the few rows instead of the wide block.
    if bool((alpha == alpha[0]).all()):
        return (rows / (eigenvalues + alpha[0])) @ cross
    return rows @ (cross / (eigenvalues[:, None] + alpha))
