"""The rows of a regression, streamed: training samples of one subject and runs of their targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from encoders._shared.moments import RunningMoments, require_finite
from encoders.base import Batch, Head, Runs, SubjectData


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


def runs_of(pieces: Sequence[Piece]) -> Runs:
    """Return the runs of targets to ask a subject's batches for; a group holds at most one piece of a head."""
    return {piece.head.name: (piece.start, piece.stop) for piece in pieces}


def side_by_side(batch: Batch, pieces: Sequence[Piece]) -> torch.Tensor:
    """Return the `(B, width)` targets of a batch that was asked for the runs of some pieces, in their order."""
    return torch.cat([batch.targets[piece.head.name] for piece in pieces], dim=1)


def with_slices(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, slice]]:
    """Yield each piece with the columns it takes where the pieces stand side by side."""
    start = 0
    for piece in pieces:
        stop = start + piece.stop - piece.start
        yield piece, slice(start, stop)
        start = stop


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
            # A wide head is cut, narrow ones share a group: each group costs one pass over the rows.
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], width
    if group:
        yield group


class TrainingRows:
    """The rows of a regression: the training samples of one subject, as the stage makes them (trials, or their means).

    Rows come in the same order on every pass and are streamed.
    """

    def __init__(self, data: SubjectData, dtype: torch.dtype, device: torch.device) -> None:
        """Prepare passes over the training rows.

        Args:
            data: The subject.
            dtype: Arithmetic of the sums.
            device: Where to compute.
        """
        self.data = data
        self.dtype = dtype
        self.device = device

    @cached_property
    def stimuli(self) -> torch.Tensor:
        """`(n,)` stimulus of each row, -1 where it has none."""
        return torch.cat([batch.stimuli.cpu() for batch in self._batches([])])

    @property
    def count(self) -> int:
        """n, the number of rows."""
        return self.data.n_trials("train")

    @cached_property
    def moments(self) -> RunningMoments:
        """Mean and variance of the `V` voxels over the rows.

        Raises:
            ValueError: If a voxel of a training row is not finite.
        """
        # One pass whatever columns heads use and however bands scale them: all take their share of the same moments.
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
        for batch in self._batches(pieces):
            yield self._voxels(batch), self._targets(batch, pieces)

    def _batches(self, pieces: Sequence[Piece]) -> Iterator[Batch]:
        """Return the training rows in the shards' order with the pieces' targets and no other."""
        # An order without a seed: folds and coordinates name rows by number, so every pass must agree on it.
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
