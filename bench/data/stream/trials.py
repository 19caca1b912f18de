"""The trials of one subject in shared memory, and how they become z-scored batches on the host."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from bench.data.splits import ROLES, SplitRole
from bench.data.stream.blocks import betas_of


@dataclass(frozen=True)
class Betas:
    """Raw betas of one subject, a block `(T_s, V)` for each session, as the tasks that read them left them.

    What is pickled is the references alone: every process of a node looks at the same memory, which is read-only.

    Attributes:
        refs: Ray references to blocks as `bench.data.stream.load` leaves them: one row, betas of some sessions.
        arrays: The blocks themselves, where they are not in Ray's object store.
        dtype: NumPy type of the betas behind `refs`.
        voxels: V of the betas behind `refs`.
    """

    refs: tuple[Any, ...] = ()
    arrays: tuple[np.ndarray, ...] = ()
    dtype: str = ""
    voxels: int = 0

    @functools.cached_property
    def blocks(self) -> tuple[np.ndarray, ...]:
        """The blocks, in the order of sessions."""
        if self.arrays:
            return self.arrays
        return tuple(
            session for block in ray.get(list(self.refs)) for session in betas_of(block, self.dtype, self.voxels)
        )

    def __reduce__(self) -> tuple[type[Betas], tuple[Any, ...]]:
        return Betas, (self.refs, self.arrays, self.dtype, self.voxels)


@dataclass(frozen=True)
class SubjectTrials:
    """The trials of one subject, decoded once.

    Attributes:
        subject: Its number.
        coordinates: `(V, 3)` or `(V, 1)` int32, see the voxel table.
        labels: For each atlas `(V,)` int16.
        betas: The raw betas, in the order of trials.
        trial, stimulus, repeat, session: `(N,)` integers.
        role: `(N,)` int8 indices into `splits.ROLES`.
        mean, scale: `(S, V)` float32, z = (beta - mean[s]) * scale[s] with s the row of `sessions`.
        sessions: `(S,)` session numbers.
    """

    subject: int
    coordinates: np.ndarray
    labels: Mapping[str, np.ndarray]
    betas: Betas
    trial: np.ndarray
    stimulus: np.ndarray
    repeat: np.ndarray
    session: np.ndarray
    role: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    sessions: np.ndarray

    @property
    def n_voxels(self) -> int:
        """V."""
        return int(self.mean.shape[1])

    def rows(self, role: SplitRole) -> np.ndarray:
        """Return the indices of a role's trials, in the order of trials."""
        return np.flatnonzero(self.role == ROLES.index(role))

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for some trials the block they lie in and their row within it."""
        block = np.searchsorted(self.sessions, self.session[rows])
        first = np.searchsorted(self.session, self.sessions)
        return block, rows - first[block]

    def z(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return normalised betas of some trials: `(len(rows), V)` float32.

        Args:
            rows: Indices of trials.
            out: Where to write them; None makes a new array.
        """
        values = np.empty((len(rows), self.n_voxels), np.float32) if out is None else out
        blocks, mean, scale = self.betas.blocks, list(self.mean), list(self.scale)
        located = (part.tolist() for part in self.locate(rows))  # Python's own numbers index faster than NumPy's
        # Row by row: a row stays in cache for all three operations. One cast with the subtraction would be a call less,
        # but NumPy then casts through small buffers, which takes half as long again.
        for target, block, row in zip(values, *located, strict=True):
            np.copyto(target, blocks[block][row], casting="unsafe")
            np.subtract(target, mean[block], out=target)
            np.multiply(target, scale[block], out=target)
        return values


class HostGather:
    """Gathers z-scored trials into host memory, by the threads that torch may use (those that Ray gave).

    The memory of a batch is used again once nothing holds it any more: the kernel takes longer to hand out fresh pages
    than it takes to fill them.

    Args:
        trials: The subject's trials.
    """

    KEPT = 3

    def __init__(self, trials: SubjectTrials) -> None:
        self._trials = trials
        self._free: list[np.ndarray] = []
        self._threads: ThreadPoolExecutor | None = None

    def rows(self, rows: np.ndarray) -> torch.Tensor:
        """Return the z-scored betas of some trials, `(len(rows), V)` float32."""
        values = self._buffer(len(rows))
        threads = torch.get_num_threads()
        if threads == 1 or len(rows) < 2 * threads:
            return torch.from_numpy(self._trials.z(rows, values))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(threads)
        shares = np.array_split(np.arange(len(rows)), threads)
        done = [self._threads.submit(self._trials.z, rows[s], values[s[0] : s[-1] + 1]) for s in shares]
        for each in done:
            each.result()
        return torch.from_numpy(values)

    def _buffer(self, rows: int) -> np.ndarray:
        """Return memory for some rows that no batch holds."""
        fits = next((i for i, buffer in enumerate(self._free) if len(buffer) >= rows), None)
        whole = np.empty((rows, self._trials.n_voxels), np.float32) if fits is None else self._free.pop(fits)
        view = whole[:rows]
        # A tensor made of the view keeps it alive, and so do all tensors that share its memory.
        weakref.finalize(view, self._give_back, whole).atexit = False
        return view

    def _give_back(self, buffer: np.ndarray) -> None:
        if len(self._free) < self.KEPT:
            self._free.append(buffer)
