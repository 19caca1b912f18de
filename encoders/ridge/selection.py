"""Comparing alphas: held-out errors of every target, gathered block after block of targets.

A `Comparison` belongs to one factorisation. It is shown each block of targets once and then says how large the held-out
error of each alpha is. Where a dual factorisation meets many targets, `encoders.ridge.quadratic_forms` finds
leave-one-out and k-fold errors with fewer operations than going through the rows does.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoders._shared.moments import require_finite
from encoders.ridge.gram import Factorisation
from encoders.ridge.penalties import Method, folds_by_stimulus, gcv_errors, heldout_errors, kfold_errors, loo_errors
from encoders.ridge.rows import Piece, TrainingRows, runs_of, side_by_side, with_slices
from encoders.ridge.targets import TargetSums


@dataclass(frozen=True)
class Question:
    """What is compared, and how.

    Attributes:
        method: How an alpha is judged.
        alphas: The A penalties.
        folds: Number of folds of "kfold".
        seed: Which stimuli share a fold.
    """

    method: Method
    alphas: tuple[float, ...]
    folds: int
    seed: int


class Comparison(abc.ABC):
    """Held-out errors of the targets of one factorisation."""

    keeps_targets = False
    """Whether `update` needs the centred targets themselves."""

    @abc.abstractmethod
    def update(self, pieces: Sequence[Piece], sums: TargetSums) -> None:
        """Add a block of targets.

        Args:
            pieces: Which targets, in the order of heads and of targets.
            sums: What `sum_targets` returned for them.
        """

    @abc.abstractmethod
    def table(self, head: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the held-out error of each alpha and the variance of each target, for `best_rows`.

        Returns:
            `(A, D)` and `(D,)` for every target of the head; or `(A, 1)`, the mean over varying targets of error /
            variance, and a single 1 (0 where no target varies).
        """


class EachTarget(Comparison):
    """A comparison that finds the errors of a block at once and keeps them for every target."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    @abc.abstractmethod
    def errors(self, pieces: Sequence[Piece], sums: TargetSums) -> torch.Tensor:
        """Return the `(A, width)` errors of a block; arguments as in `update`."""

    def update(self, pieces: Sequence[Piece], sums: TargetSums) -> None:
        """Add a block of targets; see `Comparison.update`."""
        errors = self.errors(pieces, sums)
        for piece, run in with_slices(pieces):
            self._parts.setdefault(piece.head.name, []).append((errors[:, run], sums.variance[run]))

    def table(self, head: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the errors of every target; see `Comparison.table`."""
        parts = self._parts[head]
        return torch.cat([errors for errors, _ in parts], dim=1), torch.cat([variance for _, variance in parts])


class DirectComparison(EachTarget):
    """Errors computed for every target of a block by itself, whatever the form and the method."""

    def __init__(self, question: Question, factor: Factorisation, rows: TrainingRows) -> None:
        """Prepare what all blocks share.

        Args:
            question: What is compared.
            factor: The factorisation.
            rows: Its training rows.
        """
        super().__init__()
        self._question, self._factor, self._rows = question, factor, rows
        self.keeps_targets = question.method in ("loo", "kfold")
        # GCV and validation trials need sums over rows alone; loo and folds need the rows.
        self._left = orthonormal_rows(factor, rows) if self.keeps_targets else None
        self._folds = folds_of(question, rows)
        self._projected = self._validation_coordinates() if question.method == "validation" else None

    def _validation_coordinates(self) -> torch.Tensor:
        """Return the `(N, r)` coordinates of the validation trials."""
        parts = []
        # No targets: they are asked for block by block in `errors`.
        for batch in self._rows.data.batches("validation", seed=-1, runs={}):
            require_finite(batch.voxels, f"validation voxels of subject {self._rows.data.subject}")
            parts.append(self._factor.project(batch.voxels))
        return torch.cat(parts)

    def errors(self, pieces: Sequence[Piece], sums: TargetSums) -> torch.Tensor:
        """Return the `(A, width)` errors of a block; see `EachTarget.errors`."""
        alphas, spectrum = self._question.alphas, self._factor.eigenvalues
        if self._projected is not None:
            batches = self._rows.data.batches("validation", seed=-1, runs=runs_of(pieces))
            targets = torch.cat([side_by_side(batch, pieces) for batch in batches]).to(sums.mean) - sums.mean
            return heldout_errors(spectrum, self._projected, sums.cross, targets, alphas)
        if self._left is None:
            # GCV works in orthonormal coordinates of the rows, which the dual form has already.
            roots = 1.0 if self._factor.form == "dual" else self._factor.inverse_roots()[:, None]
            return gcv_errors(spectrum, sums.cross * roots, sums.variance, self._factor.rows, alphas)
        assert sums.centred is not None
        if self._question.method == "loo":
            return loo_errors(spectrum, self._left, sums.centred, alphas)
        return kfold_errors(spectrum, self._left, sums.centred, self._folds, alphas)


def orthonormal_rows(factor: Factorisation, rows: TrainingRows) -> torch.Tensor:
    """Return the `(n, r)` orthonormal coordinates U of the training rows."""
    if factor.left is not None:
        return factor.left
    # The primal form keeps no row coordinates: one more pass gives them, only where a method asks.
    coordinates = torch.cat([factor.project(voxels) for voxels, _ in rows.chunks([])])
    return coordinates * factor.inverse_roots()


def folds_of(question: Question, rows: TrainingRows) -> tuple[torch.Tensor, ...]:
    """Return the row numbers of each fold of "kfold"; none for other methods."""
    if question.method != "kfold":
        return ()
    return tuple(fold.to(rows.device) for fold in folds_by_stimulus(rows.stimuli, question.folds, question.seed))
