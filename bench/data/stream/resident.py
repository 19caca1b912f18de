"""Data that live on the device: copied there once, gathered and z-scored there, equal to what the host gathers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from bench.data.stream.trials import SubjectTrials

SHARE = 0.2
"""Share of a device's free memory that a fit's data may take; the rest is its model's and other fits'."""


class DeviceGather:
    """Gathers z-scored trials on a device that holds all of a subject's raw betas.

    The operations are those of `SubjectTrials.z`, one after the other, so that the numbers are the same.

    Args:
        trials: The subject's trials.
        device: Where they go.
    """

    def __init__(self, trials: SubjectTrials, device: torch.device) -> None:
        self._device = device
        blocks = trials.betas.blocks
        shape = (sum(len(block) for block in blocks), trials.n_voxels)
        self._betas = torch.empty(shape, dtype=torch.tensor(blocks[0][:0]).dtype, device=device)
        start = 0
        for block in blocks:  # block by block, so that the host never holds a second copy of the subject
            self._betas[start : start + len(block)] = torch.tensor(block)
            start += len(block)
        self._mean, self._scale = (torch.tensor(part, device=device) for part in (trials.mean, trials.scale))
        self._session = torch.tensor(np.searchsorted(trials.sessions, trials.session), device=device)

    def rows(self, rows: np.ndarray) -> torch.Tensor:
        """Return the z-scored betas of some trials, `(len(rows), V)` float32 on the device."""
        index = torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(self._device)
        session = self._session[index]
        values = self._betas.index_select(0, index).to(torch.float32)
        return values.sub_(self._mean[session]).mul_(self._scale[session])


class Resident:
    """What of a fit's data lives on its device; everything is copied when it is first asked for.

    Args:
        device: Where the fit computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # By identity: the subjects of a joint fit share their target tables, and one copy serves all of them.
        self._tables: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    def trials(self, trials: SubjectTrials) -> DeviceGather:
        """Return a subject's betas on the device."""
        return DeviceGather(trials, self.device)

    def targets(self, values: np.ndarray, rows: np.ndarray, run: tuple[int, int] | None = None) -> torch.Tensor:
        """Return rows of a target table as float32 on the device.

        Args:
            values: `(M, *shape)`.
            rows: `(B,)` rows.
            run: First and one past the last of the flattened targets, or None for `(B, *shape)`.
        """
        if id(values) not in self._tables:
            self._tables[id(values)] = (values, torch.tensor(values, device=self.device))
        table = self._tables[id(values)][1]
        index = torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(self.device)
        return (table if run is None else table.flatten(1)[:, run[0] : run[1]]).index_select(0, index).float()


def resident(device: torch.device, subjects: Iterable[SubjectTrials], tables: Iterable[np.ndarray]) -> Resident | None:
    """Return where a fit's data live, or None where that is the host's memory: on CPUs, and where they do not fit."""
    if device.type != "cuda":
        return None
    needed = sum(block.nbytes for trials in subjects for block in trials.betas.blocks)
    needed += sum(table.nbytes for table in tables)
    free, _ = torch.cuda.mem_get_info(device)
    return Resident(device) if needed <= SHARE * free else None
