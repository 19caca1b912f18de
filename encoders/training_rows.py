"""The rows of a regression, streamed: training trials of one subject and runs of their targets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from encoders.base import Batch, Head, SubjectData
from encoders.standardize import RunningMoments, require_finite


@dataclass(frozen=True)
class Piece:
    """A run of consecutive targets of one head.

    Attributes:
        head: The head.
        start: First target.
        stop: One past the last.
    """

    head: Head
    start: int
    stop: int


def runs_of(pieces: Sequence[Piece]) -> dict[str, tuple[int, int]]:
    """Return the runs of targets to ask a subject's batches for; a group holds at most one piece of a head."""
    return {piece.head.name: (piece.start, piece.stop) for piece in pieces}


def side_by_side(batch: Batch, pieces: Sequence[Piece]) -> torch.Tensor:
    """Return the `(B, width)` targets of a batch that was asked for the runs of some pieces, in their order."""
    return torch.cat([batch.targets[piece.head.name] for piece in pieces], dim=1)


def pieces_of(heads: Sequence[Head], width: int) -> Iterator[list[Piece]]:
    """Yield groups of pieces of at most `width` targets together, covering every head once and in order.

    Args:
        heads: Heads that share a factorisation.
        width: Most targets in memory at once.
    """
    group: list[Piece] = []
    room = width
    for head in heads:
        start = 0
        while start < head.size:
            stop = min(head.size, start + room)
            group.append(Piece(head, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], width
    if group:
        yield group


def columns_key(head: Head, subject: int) -> str:
    """Return a name of the voxel columns a head uses; equal columns have equal names."""
    if head.columns is None:
        return "all"
    columns = np.ascontiguousarray(head.columns[subject], dtype="<i8")
    return hashlib.sha256(columns.tobytes()).hexdigest()[:16]


def group_by_columns(heads: Sequence[Head], subject: int) -> dict[str, list[tuple[int, Head]]]:
    """Return the numbered heads by the voxel columns they use: each group shares a factorisation."""
    groups: dict[str, list[tuple[int, Head]]] = {}
    for number, head in enumerate(heads):
        groups.setdefault(columns_key(head, subject), []).append((number, head))
    return groups


class TrainingRows:
    """The rows of a regression: the training trials of one subject, or the mean of the trials of each stimulus.

    Rows come in the same order on every pass. Only averaged voxels are held in memory; trials are streamed.
    """

    def __init__(self, data: SubjectData, average: bool, dtype: torch.dtype, device: torch.device) -> None:
        """Prepare passes over the training trials.

        Args:
            data: The subject.
            average: Whether to average the trials of a stimulus.
            dtype: Arithmetic of the sums.
            device: Where to compute.
        """
        self.data = data
        self.average = average
        self.dtype = dtype
        self.device = device

    @cached_property
    def trial_stimuli(self) -> torch.Tensor:
        """`(trials,)` stimulus of each training trial."""
        return torch.cat([batch.stimuli.cpu() for batch in self._batches([])])

    @cached_property
    def stimuli(self) -> torch.Tensor:
        """`(n,)` stimulus of each row.

        Raises:
            ValueError: If trials are to be averaged and some have no stimulus.
        """
        if not self.average:
            return self.trial_stimuli
        missing = int((self.trial_stimuli < 0).sum())
        if missing:
            raise ValueError(
                f"average_repeats needs the stimulus of every training trial; {missing} of subject "
                f"{self.data.subject} have none"
            )
        return torch.unique(self.trial_stimuli)

    @property
    def count(self) -> int:
        """n, the number of rows."""
        return self.stimuli.numel() if self.average else self.data.n_trials("train")

    @cached_property
    def moments(self) -> RunningMoments:
        """Mean and variance of the `V` voxels over the rows.

        Raises:
            ValueError: If a voxel of a training trial is not finite.
        """
        moments = RunningMoments()
        for voxels, _ in self.chunks([]):
            moments.update(voxels)
        return moments

    def chunks(self, pieces: Sequence[Piece]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the rows once, in their order.

        Args:
            pieces: Which targets to deliver.

        Yields:
            `(b, V)` raw voxels and `(b, width)` targets, side by side in the order of the pieces.
        """
        if self.average:
            yield self._averaged_voxels, self._averaged_targets(pieces)
            return
        for batch in self._batches(pieces):
            yield self._voxels(batch), self._targets(batch, pieces)

    def _batches(self, pieces: Sequence[Piece]) -> Iterator[Batch]:
        """Return the training trials in the shards' order with the pieces' targets and no other."""
        return self.data.batches("train", seed=-1, runs=runs_of(pieces))

    def _voxels(self, batch: Batch) -> torch.Tensor:
        """Return a batch's voxels where and as they are computed with."""
        require_finite(batch.voxels, f"voxels of subject {self.data.subject}")
        return batch.voxels.to(self.device, self.dtype)

    def _targets(self, batch: Batch, pieces: Sequence[Piece]) -> torch.Tensor:
        """Return `(B, width)` targets of the pieces, side by side."""
        if not pieces:
            return torch.zeros(batch.voxels.shape[0], 0, dtype=self.dtype, device=self.device)
        return side_by_side(batch, pieces).to(self.device, self.dtype)

    @cached_property
    def _averaged_voxels(self) -> torch.Tensor:
        """`(n, V)` mean voxels of each stimulus."""
        return self._average(((batch, self._voxels(batch)) for batch in self._batches([])), self.data.n_voxels)

    def _averaged_targets(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Return `(n, width)` mean targets of each stimulus."""
        width = sum(piece.stop - piece.start for piece in pieces)
        return self._average(((batch, self._targets(batch, pieces)) for batch in self._batches(pieces)), width)

    def _average(self, parts: Iterator[tuple[Batch, torch.Tensor]], width: int) -> torch.Tensor:
        """Return `(n, width)` means over the trials of each stimulus."""
        # Sums by stimulus need no order of trials, so a shard can hold the repeats of a stimulus anywhere.
        sums = torch.zeros(self.count, width, dtype=self.dtype, device=self.device)
        counts = torch.zeros(self.count, dtype=self.dtype, device=self.device)
        for batch, values in parts:
            rows = torch.searchsorted(self.stimuli, batch.stimuli.cpu()).to(self.device)
            sums.index_add_(0, rows, values)
            counts.index_add_(0, rows, torch.ones_like(rows, dtype=self.dtype))
        return sums / counts[:, None]
