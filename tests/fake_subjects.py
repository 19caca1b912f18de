"""Subjects held in memory, for tests of encoders: bench's streaming `SubjectData` without shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from encoders.base import Batch, Head, Role, Runs


@dataclass(frozen=True)
class Trials:
    """Trials of one role: `(T, V)` voxels, `(T, *shape)` targets of each head, `(T,)` stimuli."""

    voxels: torch.Tensor
    targets: Mapping[str, torch.Tensor]
    stimuli: torch.Tensor

    def take(self, rows: torch.Tensor) -> Trials:
        targets = {name: values[rows] for name, values in self.targets.items()}
        return Trials(self.voxels[rows], targets, self.stimuli[rows])


@dataclass(frozen=True)
class FakeSubject:
    """A subject whose trials are in memory; `natural` is the batch size where the encoder leaves the choice."""

    subject: int
    roles: Mapping[Role, Trials]
    natural: int = 100
    coordinates: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int32))
    rois: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_voxels(self) -> int:
        return int(self.roles["train"].voxels.shape[1])

    def n_trials(self, role: Role) -> int:
        return int(self.roles[role].voxels.shape[0]) if role in self.roles else 0

    def columns(self, roi: str) -> np.ndarray:
        return self.rois[roi]

    def batches(self, role: Role, seed: int, size: int | None = None, runs: Runs | None = None) -> Iterator[Batch]:
        if role not in self.roles:
            return
        trials = self.roles[role]
        count = trials.voxels.shape[0]
        order = np.arange(count) if seed < 0 else np.random.default_rng(seed).permutation(count)
        for rows in torch.from_numpy(order).split(size or self.natural):
            voxels, stimuli = trials.voxels[rows], trials.stimuli[rows]
            if runs is None:
                targets = {name: values[rows] for name, values in trials.targets.items()}
            else:
                targets = {name: trials.targets[name].flatten(1)[rows, a:b] for name, (a, b) in runs.items()}
            yield Batch(self.subject, voxels, targets, stimuli)

    def with_role(self, role: Role, trials: Trials) -> FakeSubject:
        return replace(self, roles={**self.roles, role: trials})

    def without(self, role: Role) -> FakeSubject:
        return replace(self, roles={name: trials for name, trials in self.roles.items() if name != role})

    def permuted(self, seed: int) -> FakeSubject:
        """The same voxels with the targets of other training trials: nothing is left to learn."""
        train = self.roles["train"]
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(train.voxels.shape[0]))
        shuffled = train.take(rows)
        return self.with_role("train", Trials(train.voxels, shuffled.targets, shuffled.stimuli))


def linear_subject(
    subject: int,
    heads: Sequence[Head],
    n_voxels: int,
    n_stimuli: Mapping[Role, int],
    repeats: int = 1,
    noise: float = 1.0,
    seed: int = 0,
) -> FakeSubject:
    """Voxels that are noisy linear mixtures of eight latent causes, of which targets are linear mixtures too.

    The causes of a stimulus and the targets' mixing are the same for every subject, the voxels' mixing is not. Targets
    have offsets and unequal scales; stimuli of different roles do not overlap.
    """
    shared = np.random.default_rng(seed)
    own = np.random.default_rng([seed, subject])
    total = sum(n_stimuli.values())
    causes = shared.standard_normal((total, 8))
    mixing = own.standard_normal((8, n_voxels))
    flat = {}
    for head in heads:
        scale, offset = shared.uniform(0.5, 3.0, head.size), shared.normal(0, 5, head.size)
        flat[head.name] = causes @ shared.standard_normal((8, head.size)) * scale + offset
    roles: dict[Role, Trials] = {}
    first = 0
    for role, count in n_stimuli.items():
        stimuli = np.tile(np.arange(first, first + count), repeats)
        own.shuffle(stimuli)
        voxels = causes[stimuli] @ mixing / np.sqrt(8) + noise * own.standard_normal((len(stimuli), n_voxels))
        targets = {
            head.name: torch.from_numpy(flat[head.name][stimuli]).float().reshape(-1, *head.shape) for head in heads
        }
        roles[role] = Trials(torch.from_numpy(voxels).float(), targets, torch.from_numpy(stimuli))
        first += count
    return FakeSubject(subject, roles)
