"""What an encoder is handed: one subject's trials as batches, joined with targets by stimulus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bench.data import roi as expressions
from bench.data.stream import SubjectTrials
from bench.errors import MissingDataError
from encoders.base import Batch, Role

SUM_BATCH = 2048


@dataclass(frozen=True)
class TargetTable:
    """Targets of one head, one row a stimulus however often it was shown.

    Attributes:
        stimulus: `(M,)` sorted 0-based stimuli.
        values: `(M, *shape)`.
    """

    stimulus: np.ndarray
    values: np.ndarray

    def of(self, stimuli: np.ndarray, run: tuple[int, int] | None = None) -> np.ndarray:
        """Return the targets of some trials: `(B, *shape)` float32.

        Args:
            stimuli: `(B,)` stimulus of each trial.
            run: First and one past the last of the flattened targets; `(B, stop - start)` is returned then.

        Raises:
            MissingDataError: If a stimulus has no target.
        """
        place = np.searchsorted(self.stimulus, stimuli)
        place = np.minimum(place, len(self.stimulus) - 1)
        absent = self.stimulus[place] != stimuli
        if absent.any():
            raise MissingDataError(
                f"no target for stimuli {np.unique(stimuli[absent])[:5].tolist()}; rerun the targets stage"
            )
        if run is None:
            return self.values[place].astype(np.float32)
        # Flattening the table is a view; only the run's columns are copied.
        return self.values.reshape(len(self.values), -1)[place, run[0] : run[1]].astype(np.float32)

    def sliced(self, take: tuple[int, int] | None) -> TargetTable:
        """Return the table with only part of the targets' first axis."""
        return self if take is None else TargetTable(self.stimulus, self.values[:, take[0] : take[1]])


class SubjectStream:
    """Batches of one subject; implements `encoders.base.SubjectData`.

    Args:
        trials: The subject's trials without any test trial.
        targets: For each head its table.
        shuffle_seed: None for the true pairs. A number permutes, within each role, which stimulus' target goes with
            which stimulus' betas: the refit that gives the shuffled control.
        label_names: For each atlas its label numbers by name, for ROI expressions.
    """

    def __init__(
        self,
        trials: SubjectTrials,
        targets: Mapping[str, TargetTable],
        shuffle_seed: int | None = None,
        label_names: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self.subject = trials.subject
        self.n_voxels = trials.n_voxels
        self.coordinates = trials.coordinates
        self._trials = trials
        self._targets = targets
        self._label_names = label_names or {}
        self._paired = trials.stimulus if shuffle_seed is None else self._permuted(shuffle_seed)

    def _permuted(self, seed: int) -> np.ndarray:
        """Return for each trial the stimulus whose target it gets: a permutation within each role."""
        paired = self._trials.stimulus.copy()
        rng = np.random.default_rng([seed, self.subject])
        for role in np.unique(self._trials.role):
            rows = self._trials.role == role
            distinct, inverse = np.unique(paired[rows], return_inverse=True)
            paired[rows] = rng.permutation(distinct)[inverse]
        return paired

    def _rows(self, role: Role) -> np.ndarray:
        """Return the trials of a role; labelled data used as unlabelled means its training trials."""
        return self._trials.rows("train" if role == "unlabelled" else role)

    def n_trials(self, role: Role) -> int:
        """Return how many trials the role holds."""
        return len(self._rows(role))

    def columns(self, roi: str) -> np.ndarray:
        """Return the sorted voxel columns that a ROI expression takes; see `bench.data.roi.columns`."""
        return expressions.columns(roi, self._trials.labels, self._label_names)

    def batches(
        self,
        role: Role,
        seed: int,
        size: int | None = None,
        runs: Mapping[str, tuple[int, int]] | None = None,
    ) -> Iterator[Batch]:
        """Yield the trials of a role once; see `encoders.base.SubjectData.batches`."""
        rows = self._rows(role)
        if seed >= 0:
            rows = np.random.default_rng([seed, self.subject]).permutation(rows)
        size = size or SUM_BATCH
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield Batch(
                subject=self.subject,
                voxels=torch.from_numpy(self._trials.z(chosen)),
                targets=self._joined(chosen, role, runs),
                stimuli=torch.from_numpy(self._trials.stimulus[chosen].astype(np.int64)),
            )

    def _joined(
        self, rows: np.ndarray, role: Role, runs: Mapping[str, tuple[int, int]] | None
    ) -> dict[str, torch.Tensor]:
        """Return the targets of some trials by head, whole or the runs asked for; none for unlabelled trials."""
        if role == "unlabelled":
            return {}
        wanted = dict.fromkeys(self._targets) if runs is None else runs
        paired = self._paired[rows]
        return {name: torch.from_numpy(self._targets[name].of(paired, run)) for name, run in wanted.items()}
