"""What an encoder is handed: one subject's trials as batches, joined with targets by stimulus.

A batch is gathered from the raw betas in the node's shared memory, or on the device where they fit there, and its
targets from one table a head: nothing is stored a trial that is the same for a stimulus.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import ray
import torch

from bench.data import roi as expressions
from bench.data.shards.targets import TargetTable
from bench.data.stream.resident import DeviceGather, Resident
from bench.data.stream.rules import Averaging
from bench.data.stream.trials import HostGather, SubjectTrials
from bench.data.stream.turns import dealt
from encoders.base import Batch, Role

SUM_BATCH = 2048


class SubjectStream:
    """Batches of one subject; implements `encoders.base.SubjectData`.

    The order of an epoch is a permutation of all of a role's samples, drawn from the seed and the subject alone.

    Args:
        trials: The subject's trials without any test trial.
        targets: For each head its table.
        shuffle_seed: None for the true pairs. A number permutes, within each role, which stimulus' target goes with
            which stimulus' betas: the refit that gives the shuffled control.
        label_names: For each atlas its label numbers by name, for ROI expressions.
        averaging: What a sample is.
        resident: Where betas and targets live for epochs in a seeded order, whose batches are gathered there; None for
            the host's shared memory, from which passes in the shards' own order always come.
        share: This worker's share of seeded epochs (`bench.data.stream.turns`); None for all. Passes in the shards' own
            order, which sum over the trials, see all of them on every worker.
    """

    def __init__(
        self,
        trials: SubjectTrials,
        targets: Mapping[str, TargetTable],
        shuffle_seed: int | None = None,
        label_names: Mapping[str, Mapping[str, int]] | None = None,
        averaging: Averaging = "single",
        resident: Resident | None = None,
        share: ray.data.DataIterator | None = None,
    ) -> None:
        self.subject = trials.subject
        self.n_voxels = trials.n_voxels
        self.coordinates = trials.coordinates
        self._trials = trials
        self._targets = targets
        self._label_names = label_names or {}
        self._paired = trials.stimulus if shuffle_seed is None else self._permuted(shuffle_seed)
        self._averaging = averaging
        self._share = share
        self._resident = resident
        self._host = HostGather(trials)

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

    def _samples(self, role: Role, seed: int) -> np.ndarray:
        """Return the trials of each sample, `(samples, most)`, -1 where a sample has fewer; in the order of trials."""
        rows = self._rows(role)
        if self._averaging == "single":
            return rows[:, None]
        samples = _by_stimulus(rows, self._trials.stimulus[rows])
        if self._averaging == "mean" or role == "validation":
            return samples
        showings = (samples >= 0).sum(axis=1)
        # A negative seed asks for one fixed order: the first showing of every stimulus.
        chosen = np.zeros(len(samples), np.int64)
        if seed >= 0:
            chosen = np.random.default_rng([seed, self.subject, 1]).integers(showings)
        return np.take_along_axis(samples, chosen[:, None], axis=1)

    def n_trials(self, role: Role) -> int:
        """Return how many samples an epoch of the role holds, over all workers."""
        return len(self._samples(role, -1))

    def columns(self, roi: str) -> np.ndarray:
        """Return the sorted voxel columns that a ROI expression takes; see `bench.data.roi.columns`."""
        return expressions.columns(roi, self._trials.labels, self._label_names)

    @functools.cached_property
    def _on_device(self) -> DeviceGather | None:
        """The subject's betas on the device, copied when a seeded epoch first asks for them."""
        return None if self._resident is None else self._resident.trials(self._trials)

    def batches(
        self,
        role: Role,
        seed: int,
        size: int | None = None,
        runs: Mapping[str, tuple[int, int]] | None = None,
    ) -> Iterator[Batch]:
        """Yield the samples of a role once; see `encoders.base.SubjectData.batches`."""
        samples, resident = self._samples(role, seed), None
        if seed >= 0:
            samples = samples[np.random.default_rng([seed, self.subject]).permutation(len(samples))]
            resident = self._resident
        gather = self._host if resident is None or self._on_device is None else self._on_device
        size = size or SUM_BATCH
        for turn in self._turns(seed, len(samples), size):
            chosen = samples[turn * size : (turn + 1) * size]
            yield Batch(
                subject=self.subject,
                voxels=_means(gather, chosen),
                targets=self._joined(chosen[:, 0], role, runs, resident),
                stimuli=torch.from_numpy(self._trials.stimulus[chosen[:, 0]].astype(np.int64)),
            )

    def _turns(self, seed: int, samples: int, size: int) -> Iterator[int]:
        """Return the numbers of the epoch's batches: all of them, or what this worker is dealt."""
        if self._share is not None and seed >= 0:
            return dealt(self._share)
        return iter(range(math.ceil(samples / size)))

    def _joined(
        self, rows: np.ndarray, role: Role, runs: Mapping[str, tuple[int, int]] | None, resident: Resident | None
    ) -> dict[str, torch.Tensor]:
        """Return the targets of some trials by head, whole or the runs asked for; none for unlabelled trials."""
        if role == "unlabelled":
            return {}
        wanted = dict.fromkeys(self._targets) if runs is None else runs
        paired = self._paired[rows]
        if resident is None:
            return {name: torch.from_numpy(self._targets[name].of(paired, run)) for name, run in wanted.items()}
        tables = {name: self._targets[name] for name in wanted}
        return {name: resident.targets(t.values, t.rows_of(paired), wanted[name]) for name, t in tables.items()}


def _means(gather: HostGather | DeviceGather, samples: np.ndarray) -> torch.Tensor:
    """Return the mean z-scored betas of each sample's trials, `(len(samples), V)` float32."""
    total = gather.rows(samples[:, 0])
    for more in samples.T[1:]:
        rows = np.flatnonzero(more >= 0)
        if len(rows):
            total.index_add_(0, torch.from_numpy(rows).to(total.device), gather.rows(more[rows]))
    if samples.shape[1] > 1:
        total /= torch.from_numpy((samples >= 0).sum(axis=1, keepdims=True)).to(total)
    return total


def _by_stimulus(rows: np.ndarray, stimuli: np.ndarray) -> np.ndarray:
    """Return the trials of each stimulus in a row of their own, `(stimuli, most)`, -1 where it was shown less often.

    Stimuli follow their first showing. Trials without a stimulus (-1) are samples of their own.
    """
    keys = np.where(stimuli < 0, -1 - np.arange(len(stimuli)), stimuli)
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    order = np.argsort(inverse, kind="stable")  # trials stimulus by stimulus, each in the order of trials
    showing = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((len(first), int(counts.max(initial=1))), -1, np.int64)
    found[place[inverse[order]], showing] = rows[order]
    return found
