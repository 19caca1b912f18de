"""A dataset that leaves a trace of the workers that read it, so that a test can kill them while they do."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.data.datasets.base import SessionTrials, Stimulus, VoxelTable
from bench.data.datasets.nsd.dataset import Nsd, NsdOptions


@dataclass(frozen=True)
class SlowOptions(NsdOptions):
    """NSD's options, the folder where workers leave their process ids, and how long reading takes at most."""

    traces: str = ""
    pause_s: float = 0.3


class SlowNsd(Nsd):
    """NSD's reader that dawdles: before reading, and again before it hands over what it read."""

    Options = SlowOptions

    def _dawdle(self) -> None:
        (Path(self.options.traces) / str(os.getpid())).touch()
        time.sleep(random.random() * self.options.pause_s)

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        self._dawdle()
        read = super().read_session(subject, session, voxels)
        self._dawdle()
        return read

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        self._dawdle()
        yield from super().stimuli(numbers)


def slow(root: Path, traces: Path, pause_s: float = 0.3) -> SlowNsd:
    traces.mkdir(parents=True, exist_ok=True)
    return SlowNsd(replace(SlowOptions(root=str(root)), traces=str(traces), pause_s=pause_s))
