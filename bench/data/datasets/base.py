"""The dataset contract: what a reader of one dataset's own files gives to `bench.prepare`."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

SPREAD_VOXELS = 256
"""Voxels at least that are looked at to see how much betas vary, where there are as many."""


@dataclass(frozen=True)
class VoxelTable:
    """The voxels of one subject that a voxel set selects, in the order of the betas' columns.

    Attributes:
        coordinates: `(V, 3)` int32 voxel indices on the NIfTI axes in canonical order (x, y, z with z fastest), or
            `(V, 1)` vertex numbers.
        ncsnr: `(V,)` float32 noise-ceiling SNR published with the betas; NaN where unknown.
        labels: For each atlas `(V,)` int16 label numbers (-1 not cortex, 0 unlabelled, 1...N).
        left_out: How many more the voxel set selects that have no valid data in some prepared session.
    """

    coordinates: np.ndarray
    ncsnr: np.ndarray
    labels: Mapping[str, np.ndarray]
    left_out: int = 0

    @property
    def digest(self) -> str:
        """Digest of the table's numbers."""
        # In one byte order and sorted by atlas: equal tables have one digest on every machine.
        total = hashlib.sha256(self.coordinates.astype("<i4").tobytes() + self.ncsnr.astype("<f4").tobytes())
        for atlas, labels in sorted(self.labels.items()):
            total.update(f"{atlas}\0".encode() + labels.astype("<i2").tobytes())
        return total.hexdigest()[:16]

    def only(self, valid: np.ndarray) -> VoxelTable:
        """Return the table of the voxels with valid data, `(V,)` bool, in their order; the others count as left out."""
        labels = {atlas: values[valid] for atlas, values in self.labels.items()}
        left_out = self.left_out + int(np.count_nonzero(~valid))
        return VoxelTable(self.coordinates[valid], self.ncsnr[valid], labels, left_out)


@dataclass(frozen=True)
class Trials:
    """What was shown in one session.

    Attributes:
        trial: `(T,)` 0-based trial of the subject over all sessions.
        stimulus: `(T,)` 0-based stimulus; -1 where no picture was shown.
        repeat: `(T,)` 0-based showing of that stimulus to that subject.
    """

    trial: np.ndarray
    stimulus: np.ndarray
    repeat: np.ndarray

    def with_betas(self, betas: np.ndarray, bytes_read: int) -> SessionTrials:
        """Return these trials with their betas `(T, V)`, for which so many bytes of the source were read."""
        return SessionTrials(self.trial, self.stimulus, self.repeat, betas, bytes_read)


@dataclass(frozen=True)
class SessionTrials(Trials):
    """The trials of one session with their betas.

    Attributes:
        betas: `(T, V)` in the source's own dtype and scale.
        bytes_read: Bytes read from the source.
    """

    betas: np.ndarray
    bytes_read: int


@dataclass(frozen=True)
class Stimulus:
    """One stimulus: picture `(H, W, 3)` uint8 RGB or None, captions, class label, and whether it is a shared one."""

    number: int
    image: np.ndarray | None
    captions: tuple[str, ...]
    label: str | None
    shared: bool


@dataclass(frozen=True)
class BetaUnit:
    """What betas are in, once multiplied by a dataset's scale, and how much they vary there.

    Attributes:
        name: The unit, as manifests have it.
        low, high: Between these lies the standard deviation of a voxel's betas within a session, median over voxels:
            wide enough for any voxel set, and closer than a factor of 300 that was forgotten or applied twice.
        source: Where this is known from.
    """

    name: str
    low: float
    high: float
    source: str

    def doubt(self, betas: np.ndarray, scale: float) -> str:
        """Return what speaks against betas `(T, V)` as stored being in this unit, "" where nothing does.

        Some hundred voxels, evenly spaced, speak for all; those with NaN say nothing, nor does a single trial.
        """
        some = betas[:, :: max(1, betas.shape[1] // SPREAD_VOXELS)].astype(np.float64)
        deviations = some.std(axis=0) * scale
        deviations = deviations[np.isfinite(deviations)]
        if len(betas) < 2 or not len(deviations):
            return ""
        median = float(np.median(deviations))
        if self.low <= median <= self.high:
            return ""
        return (
            f"betas have a standard deviation of {median:.3g} (median over voxels); in {self.name} it lies between "
            f"{self.low:g} and {self.high:g} ({self.source})"
        )


class Dataset(abc.ABC):
    """Reads one dataset's own layout. A module in this folder holds one public subclass; its file name is its name."""

    version: ClassVar[int]
    """Raised whenever the same files give other shards: part of the shards' digest."""

    Options: ClassVar[type]
    """Frozen dataclass: where the files are (`root`), which betas, space and voxel set, which subjects and sessions."""

    name: str
    """The dataset's name on shards, records and boards; simulated data are never called like the real ones."""

    terms: str
    """The dataset's terms of use in a sentence, shown before anything is fetched; "" where there are none."""

    caption_source: str
    """Where the captions come from."""

    dtype: str
    """NumPy type of stored betas, little-endian (`<i2`, `<f4`)."""

    scale: float
    """Factor from stored betas to the unit."""

    unit: BetaUnit
    """What betas times `scale` are in."""

    def __init__(self, options: Any) -> None:  # noqa: ANN401 - each subclass names its own Options
        self.options = options

    @property
    def remote(self) -> bool:
        """Whether reading fetches bytes over the network."""
        return "://" in str(self.options.root)

    @abc.abstractmethod
    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content: names, versions and digests, no paths."""

    @abc.abstractmethod
    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides pictures, captions and labels of a given stimulus number; no paths."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The shards' folder name before the digest: `<betas>.<space>.<voxelset>`."""

    @abc.abstractmethod
    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, session) pairs to prepare, sorted; both count from 1.

        Raises:
            MissingDataError: If a session that was asked for has no file.
        """

    @abc.abstractmethod
    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed, from the design alone: no betas are read."""

    @abc.abstractmethod
    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return the file that `read_session` will read and how many of its bytes, for `voxels` voxels.

        Raises:
            MissingDataError: If there is no such file.
        """

    @abc.abstractmethod
    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of a subject.

        Raises:
            BadDataError: If the voxel set selects none.
        """

    @abc.abstractmethod
    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Return the trials of a session, reading no more than the voxels need.

        Raises:
            BadDataError: If the betas' shape does not match the mask's volume or the design's trials.
        """

    def crosscheck(self) -> int:
        """Compare what the design says was shown with any other file that says so; return the trials compared.

        Raises:
            BadDataError: If two files disagree.
        """
        return 0

    def origins(self, numbers: Sequence[int]) -> Sequence[str | None]:
        """Return what pictures are in their own public source, for the leakage audit.

        `<source>:<name there>`, the source one that `bench.data.training_sets` knows of, such as
        `coco-train2017:396550` or `imagenet:n01518878_10042`; None where it is not known, as here.
        """
        return [None] * len(numbers)

    @abc.abstractmethod
    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield the stimuli with these 0-based numbers, in this order."""
