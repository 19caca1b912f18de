"""Ridge regression from voxels to targets, closed form: the linear systems of the field.

Brain-Diffuser (Ozcelik & VanRullen 2023) fixes alpha at 50,000 (VDVAE latents), 60,000 (CLIP-vision tokens) and 100,000
(CLIP-text tokens); Takagi & Nishimoto 2023 select it per target on a grid; "one regressor a token" is the same as one
wide head, because ridge treats targets independently. For the same reason scaling targets would change no prediction,
so targets are only centred.

Nothing is fitted twice: one eigendecomposition (`gram`) serves every alpha, target, head and fold, and every trial of
a sweep. Held-out errors come from it exactly (`penalties` and `quadratic_forms` beside this file). With `bands` each
group of voxels has a scale of its own, and one decomposition a candidate.

Arithmetic: in float64 weights agree with scikit-learn's `Ridge` to 1e-8. In float32, which halves memory and suits
GPUs, predictions agree with float64 to 1e-3 of a target's standard deviation for alphas of at least 1e-4 times the
largest eigenvalue of the Gram matrix. Brain-Diffuser's are: with 8,859 trials of 15,724 z-scored voxels the trace is
1.4e8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch

from encoders._shared.checks import check_alone, check_fit, check_voxels, require_fitted
from encoders._shared.columns import columns_key, group_by_columns
from encoders._shared.correlation import validation_correlation
from encoders._shared.state import below, read_state, write_state
from encoders.base import Block, Encoder, Head, Runtime, SubjectData
from encoders.ridge.fit import factorise_head, fit_group
from encoders.ridge.gram import Factorisation, as_tensor
from encoders.ridge.options import RidgeOptions
from encoders.ridge.rows import Piece, TrainingRows
from encoders.ridge.store import StoredBlock, TargetBlocks

_LOG = logging.getLogger(__name__)
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Ridge(Encoder):
    """One independent ridge regression for each subject; heads with the same voxels share a factorisation."""

    version = 1
    Options: ClassVar[type] = RidgeOptions
    precompute_options = ("standardise_voxels", "form", "precision", "bands")

    options: RidgeOptions

    def __init__(self, options: RidgeOptions) -> None:
        super().__init__(options)
        self._heads: list[Head] = []
        self._n_voxels: dict[int, int] = {}
        # One factorisation a subject and set of columns; in banded ridge each that some target uses.
        self._factors: dict[tuple[int, str], tuple[Factorisation, ...]] = {}
        self._bands: tuple[str, ...] = ()
        self._targets: dict[str, torch.Tensor] = {}
        self._blocks: TargetBlocks | None = None

    def precompute(self, data: Mapping[int, SubjectData], heads: Sequence[Head]) -> Mapping[str, np.ndarray]:
        """Return the factorisation of each subject and set of columns; targets and alphas do not enter.

        Banded ridge caches nothing: twenty candidates would be 30 GB at NSD's size. Each fit makes them one by one.
        """
        check_fit(data, heads)
        if self.options.bands:
            return {}
        arrays: dict[str, np.ndarray] = {}
        for subject, trials in data.items():
            # On the CPU: the arrays go to a cache that fits on any device read.
            rows = self._rows(trials, torch.device("cpu"))
            for key, group in group_by_columns(heads, [subject]).items():
                for name, tensor in factorise_head(rows, group[0][1], self.options).tensors().items():
                    arrays[f"{subject}/{key}/{name}"] = tensor.numpy()
        return arrays

    def fit(self, data: Mapping[int, SubjectData], heads: Sequence[Head], runtime: Runtime) -> None:
        """Solve every head of every subject.

        Raises:
            ValueError: If the data cannot be fitted, a fixed alpha is missing for a head, or "validation" selects and
                a subject has no validation trials.
        """
        check_alone(self.name(), runtime)
        check_fit(data, heads)
        self._check_alphas(data, heads)
        self._heads, self._n_voxels = list(heads), {subject: trials.n_voxels for subject, trials in data.items()}
        self._factors, self._targets = {}, {}
        # Written as they are solved: Brain-Diffuser's heads have 10 GB of cross-products.
        self._blocks = blocks = TargetBlocks.temporary()
        for subject, trials in data.items():
            rows = self._rows(trials, runtime.device)
            for key, group in group_by_columns(heads, [subject]).items():
                self._fit_group(rows, key, group, runtime, blocks)
        runtime.report(0, {"validation_correlation": validation_correlation(self.predict, data, heads)})

    def _rows(self, trials: SubjectData, device: torch.device) -> TrainingRows:
        """Return the training rows in the option's arithmetic."""
        return TrainingRows(trials, _DTYPES[self.options.precision], device)

    def _check_alphas(self, data: Mapping[int, SubjectData], heads: Sequence[Head]) -> None:
        """Raise unless every head has an alpha or can have one selected."""
        # Before anything is computed: a missing head would otherwise show after minutes of factorising.
        if isinstance(self.options.alpha, dict):
            missing = [head.name for head in heads if head.name not in self.options.alpha]
            if missing:
                raise ValueError(f"option alpha names heads {sorted(self.options.alpha)}; missing: {missing}")
        if self.options.select == "validation" and (self.options.alpha is None or self.options.bands):
            without = [subject for subject, trials in data.items() if trials.n_trials("validation") == 0]
            if without:
                raise ValueError(
                    f"alpha cannot be selected on validation trials: subjects {without} have none; "
                    "allowed without them: gcv, loo, kfold, or a fixed alpha"
                )

    def _fit_group(
        self, rows: TrainingRows, key: str, group: list[tuple[int, Head]], runtime: Runtime, blocks: TargetBlocks
    ) -> None:
        """Fit the heads that share a factorisation and keep what predicts."""
        subject, numbers = rows.data.subject, {head.name: number for number, head in group}

        def put(piece: Piece, cross: torch.Tensor) -> None:
            blocks.put(subject, numbers[piece.head.name], piece.start, cross)

        heads = [head for _, head in group]
        done = fit_group(rows, heads, self.options, runtime.seed, put, self._cached(rows, key, runtime))
        for name, number in numbers.items():
            choice = done.choices[name]
            # Heads go by number: a name from a recipe may hold what a file name or key may not.
            self._targets[f"mean/{subject}/{number}"] = done.means[name]
            self._targets[f"alpha/{subject}/{number}"] = choice.alpha
            self._targets[f"candidate/{subject}/{number}"] = choice.candidate
        # Predictions need no coordinates of training rows; the state drops them.
        self._factors[subject, key] = tuple(factor.to(torch.device("cpu")) for factor in done.factors)
        self._targets[f"shares/{subject}/{key}"] = done.shares
        self._bands = done.names

    def _cached(self, rows: TrainingRows, key: str, runtime: Runtime) -> Factorisation | None:
        """Return the factorisation that a sweep's first trial computed, or None."""
        cached = below(runtime.precomputed, f"{rows.data.subject}/{key}/")
        if not cached:
            return None
        factor = Factorisation.from_tensors({name: as_tensor(array, rows.device) for name, array in cached.items()})
        _LOG.info("subject %d: %s ridge of %d rows, computed before", rows.data.subject, factor.form, factor.rows)
        return factor

    def predict(self, voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
        """Yield predictions block by block, as stored; see `Encoder.predict`."""
        check_voxels(voxels, subject, self._n_voxels)  # here and not in the generator, to fail when called
        return self._predict(voxels, subject)

    def _predict(self, voxels: torch.Tensor, subject: int) -> Iterator[Mapping[str, Block]]:
        """Yield `(x B / (s + alpha)) C + mean` for each stored block."""
        for key, group in group_by_columns(self._heads, [subject]).items():
            factors = [factor.to(voxels.device) for factor in self._factors[subject, key]]
            projected = [factor.project(voxels) for factor in factors]
            spectra = [factor.eigenvalues for factor in factors]
            for number, head in group:
                # Voxels are projected once for all blocks; a block costs one product of its own width.
                for block in self._stored(subject, number, voxels.device):
                    yield {head.name: Block(block.start, (block.times(projected, spectra) + block.mean).float())}

    def _stored(self, subject: int, number: int, device: torch.device) -> Iterator[StoredBlock]:
        """Yield the stored blocks of a head, in order."""
        for start, cross in require_fitted(self._blocks, self.name()).blocks(subject, number):
            run = slice(start, start + cross.shape[1])
            alpha, mean, candidate = (
                self._targets[f"{what}/{subject}/{number}"][run].to(device) for what in ("alpha", "mean", "candidate")
            )
            yield StoredBlock(start, cross.to(device), alpha.to(cross.dtype), mean, candidate)

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
        number, key = self._place(head, subject)
        factors = self._factors[subject, key]
        bases = [factor.basis / factor.scale[:, None] for factor in factors]
        for block in self._stored(subject, number, factors[0].mean.device):
            weights = block.times(bases, [factor.eigenvalues for factor in factors])
            yield block.start, weights, block.mean - factors[0].mean @ weights

    def _place(self, head: str, subject: int) -> tuple[int, str]:
        """Return the number of a fitted head and the name of its columns; ValueError where it was not fitted."""
        names = [each.name for each in self._heads]
        if head not in names or subject not in self._n_voxels:
            raise ValueError(
                f"no fit of head {head!r}, subject {subject}: {names}, {sorted(self._n_voxels)} are fitted"
            )
        number = names.index(head)
        return number, columns_key(self._heads[number], subject)

    def alphas(self, head: str, subject: int) -> torch.Tensor:
        """Return the `(D,)` float64 alphas used for a fitted head and subject."""
        number, _ = self._place(head, subject)
        return self._targets[f"alpha/{subject}/{number}"]

    def band_shares(self, head: str, subject: int) -> dict[str, torch.Tensor]:
        """Return for each band the `(D,)` float64 shares of a head's targets; a band's penalty is alpha / share.

        Shares of a target sum to the number of bands with voxels. Empty in plain ridge.
        """
        number, key = self._place(head, subject)
        chosen = self._targets[f"shares/{subject}/{key}"][self._targets[f"candidate/{subject}/{number}"]]
        return {name: chosen[:, band] for band, name in enumerate(self._bands)}

    def save(self, directory: Path) -> None:
        """Write factorisations and target blocks; see `Encoder.save`."""
        require_fitted(self._blocks, self.name()).copy_to(directory)
        tensors = dict(self._targets)
        for (subject, key), factors in self._factors.items():
            for place, factor in enumerate(factors):
                tensors |= {f"factor/{subject}/{key}/{place}/{name}": part for name, part in factor.tensors().items()}
        forms = {f"{subject}/{key}": factors[0].form for (subject, key), factors in self._factors.items()}
        voxels = {str(subject): count for subject, count in self._n_voxels.items()}
        facts = {"n_voxels": voxels, "forms": forms, "bands": self._bands}
        write_state(directory, self.name(), facts, self._heads, tensors)

    @classmethod
    def load(cls, options: RidgeOptions, directory: Path) -> Self:
        """Return the ridge that was saved; its blocks stay in the directory and are read when predicting."""
        facts, heads, tensors = read_state(directory, cls.name())
        ridge = cls(options)
        ridge._heads, ridge._blocks, ridge._bands = heads, TargetBlocks(directory), tuple(facts["bands"])
        ridge._n_voxels = {int(subject): count for subject, count in facts["n_voxels"].items()}
        ridge._targets = {name: tensor for name, tensor in tensors.items() if not name.startswith("factor/")}
        for pair in facts["forms"]:
            subject, key = pair.split("/")
            stored = [below(tensors, f"factor/{pair}/{n}/") for n in range(len(ridge._targets[f"shares/{pair}"]))]
            ridge._factors[int(subject), key] = tuple(Factorisation.from_tensors(each) for each in stored)
        return ridge

    @property
    def n_parameters(self) -> int:
        """Weights and intercepts of the linear maps: voxels of the head plus one, times targets, over subjects."""
        return sum(
            (self._factors[subject, columns_key(head, subject)][0].mean.numel() + 1) * head.size
            for subject in self._n_voxels
            for head in self._heads
        )
