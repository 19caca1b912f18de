"""Which trials a stage may see: split by stimulus, never by trial.

Test is the shared pictures, which every subject saw; validation is a fixed hash of the stimulus, so it is the same in
every run, subject and machine; everything else is training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

SplitRole = Literal["train", "validation", "test"]
ROLES: tuple[SplitRole, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """A rule that gives each stimulus a role.

    Attributes:
        name: Its name on the record.
        version: Raised when the rule gives another role to any stimulus.
        validation_percent: Share of the stimuli that are not shared which become validation.
    """

    name: str = "shared-test"
    version: int = 1
    validation_percent: int = 10

    def roles(self, stimuli: np.ndarray, shared: np.ndarray) -> np.ndarray:
        """Return the role of each trial.

        Args:
            stimuli: `(N,)` 0-based stimulus of each trial.
            shared: `(N,)` whether the stimulus is one of the shared pictures.

        Returns:
            `(N,)` int8 indices into `ROLES`.
        """
        distinct, inverse = np.unique(stimuli, return_inverse=True)
        held_out = np.array([self._hash(int(s)) < self.validation_percent for s in distinct], dtype=bool)
        return np.where(shared, 2, held_out[inverse].astype(np.int8)).astype(np.int8)

    @staticmethod
    def _hash(stimulus: int) -> int:
        """Return a number 0...99 that depends on the stimulus alone."""
        return int.from_bytes(hashlib.sha256(f"reconbench validation {stimulus}".encode()).digest()[:8], "big") % 100
