"""The encoder contract: everything that is trained looks like this to bench.

Closed-form, SGD, federated, self-supervised and sampling encoders all implement `Encoder`. The bench builds one from
its `Options`, calls `fit` once, `save`s the state into a directory, and later `load`s it in another process to
`predict`. Nothing here knows about ray, files of betas, or generators.

Shape legend: B trials in a batch, N rows to predict, V voxels of one subject, D targets of one head (its shape
flattened in C order).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch

Role = Literal["train", "validation", "unlabelled"]
"""What a fit may see. The test split has no role here: no encoder can ask for it."""
Runs = Mapping[str, tuple[int, int]]
"""For each head that is wanted the first and one past the last of its flattened targets."""


@dataclass(frozen=True)
class Batch:
    """Trials of one subject.

    Attributes:
        subject: The subject's number in its dataset.
        voxels: `(B, V)` float32, normalised by the rule of the recipe with statistics of training trials only.
        targets: For each head, `(B, *head.shape)` float32. Empty for unlabelled trials.
        stimuli: `(B,)` int64, the 0-based stimulus of each trial; -1 where there is none.
    """

    subject: int
    voxels: torch.Tensor
    targets: Mapping[str, torch.Tensor]
    stimuli: torch.Tensor


@dataclass(frozen=True)
class Head:
    """One target that an encoder predicts.

    Attributes:
        name: The recipe's name of the head, unique within a fit.
        shape: Shape of one target, without the batch axis.
        columns: For each subject the voxel columns the head may use (its ROI), or None for all voxels.
        constants: Tensors that the generator lends (a concept bank, a token table).
        loss: `loss(predictions, targets, seeds)` lent by the generator: differentiable in the predictions through the
            frozen network. None where the generator lends none.
    """

    name: str
    shape: tuple[int, ...]
    columns: Mapping[int, np.ndarray] | None = None
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    loss: Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor] | None = None

    @property
    def size(self) -> int:
        """D, the number of scalars in one target."""
        return int(np.prod(self.shape, dtype=np.int64))

    def select(self, voxels: torch.Tensor, subject: int) -> torch.Tensor:
        """Return the voxels this head may use.

        Args:
            voxels: `(N, V)` voxels of `subject`.
            subject: Whose voxels they are.

        Returns:
            `(N, V_head)`; the same tensor where the head uses all voxels.
        """
        if self.columns is None:
            return voxels
        # Indexing copies; heads without a ROI, most of them, must not pay for it.
        return voxels[:, torch.as_tensor(self.columns[subject], device=voxels.device)]


@dataclass(frozen=True)
class Block:
    """Predictions of a run of consecutive targets for all rows asked for.

    Attributes:
        start: First of the D flattened targets of the head.
        values: `(N, width)` float32: targets `start ... start + width - 1`.
    """

    start: int
    values: torch.Tensor


class SubjectData(Protocol):
    """The trials of one subject, as bench hands them to an encoder."""

    subject: int
    n_voxels: int
    coordinates: np.ndarray
    """`(V, 3)` int32 voxel indices on the NIfTI axes, or `(V, 1)` vertex numbers: the source of connectivity graphs."""

    def n_trials(self, role: Role) -> int:
        """Return how many trials the role holds."""

    def columns(self, roi: str) -> np.ndarray:
        """Return the sorted voxel columns that a ROI expression takes ("streams:early | prf-visualrois:hV4").

        Bench refuses what is not an expression, and unknown atlases and labels, with its own error.
        """

    def batches(self, role: Role, seed: int, size: int | None = None, runs: Runs | None = None) -> Iterator[Batch]:
        """Yield the trials of a role once.

        Args:
            role: Which trials.
            seed: Same seed, same order, whatever the number of workers. Negative: the shards' own order.
            size: Trials a batch; None gives bench's choice of large blocks, for encoders that only sum.
            runs: Batches then hold `(B, stop - start)` targets of these heads and of no other, so that 91,168 targets
                need never be read at once. None gives every head whole.
        """


class Clients(Protocol):
    """Where a federated encoder runs its clients; bench may place each on its own worker."""

    def map(self, fn: Callable[[int], Any], subjects: Sequence[int]) -> list[Any]:
        """Return `[fn(subject) for subject in subjects]`, possibly computed side by side."""


class LocalClients:
    """Runs every client in this process, one after the other."""

    def map(self, fn: Callable[[int], Any], subjects: Sequence[int]) -> list[Any]:
        """Return `[fn(subject) for subject in subjects]`."""
        return [fn(subject) for subject in subjects]


def _ignore_report(step: int, metrics: Mapping[str, float]) -> None:
    """Drop a report: the default outside a sweep."""


def _identity(value: Any) -> Any:  # noqa: ANN401 - a tensor or a nested state, returned as it came
    """Return the value: reduce and exchange of a single worker."""
    return value


@dataclass(frozen=True)
class Runtime:
    """What bench lends to a fit.

    Attributes:
        device: Where to compute.
        precision: Arithmetic of forward passes; parameters stay float32.
        seed: The only source of randomness.
        rank: This worker's number among `world_size` data-parallel workers.
        world_size: How many data-parallel workers share the fit.
        checkpoint_dir: A directory kept across restarts of this fit. An encoder that trains in epochs stores its
            progress there and continues from it; None where nothing is kept.
        initial: State directory of the stage this fit starts from (`init_from`), or None.
        precomputed: What `precompute` returned for the same data and heads, possibly from a cache.
        report: `report(step, metrics)`, called once an epoch (once by closed forms). May not return: a scheduler can
            end the fit there. `metrics` holds at least `validation_correlation`.
        reduce: Mean of a tensor over the data-parallel workers.
        clients: Runs the clients of a federated encoder.
        exchange: Sends a client's state to the server and returns the server's.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    checkpoint_dir: Path | None = None
    initial: Path | None = None
    precomputed: Mapping[str, np.ndarray] = field(default_factory=dict)
    report: Callable[[int, Mapping[str, float]], None] = _ignore_report
    reduce: Callable[[torch.Tensor], torch.Tensor] = _identity
    clients: Clients = field(default_factory=LocalClients)
    exchange: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = _identity


class Encoder(abc.ABC):
    """Maps voxels to the targets of its heads.

    A module or package in this folder holds one public subclass, named in recipes as the file is; see `name`.
    `Options` is a frozen dataclass; recipes may set its fields and nothing else.
    """

    version: ClassVar[int]
    """Raised by hand whenever the same options and data give another output: it is part of every fit's identity."""

    Options: ClassVar[type]
    """The frozen dataclass of the encoder's options."""

    precompute_options: ClassVar[tuple[str, ...]] = ()
    """Names of the options that change what `precompute` returns; they enter its cache key."""

    def __init__(self, options: Any) -> None:  # noqa: ANN401 - each subclass names its own Options
        self.options = options

    @classmethod
    def name(cls) -> str:
        """Return the encoder's name in recipes, that of its file or package: `braid_mlp.py` is `braid-mlp`."""
        return cls.__module__.removeprefix("encoders.").partition(".")[0].replace("_", "-")

    def precompute(self, data: Mapping[int, SubjectData], heads: Sequence[Head]) -> Mapping[str, np.ndarray]:
        """Return arrays that depend on voxels, stimuli and `precompute_options` alone (Gram factorisations, graphs).

        Targets may not enter: fits of other targets share the cached arrays. Pure: bench caches the result under the
        hash of its inputs and shares it between all trials of a sweep.
        """
        return {}

    @abc.abstractmethod
    def fit(self, data: Mapping[int, SubjectData], heads: Sequence[Head], runtime: Runtime) -> None:
        """Learn from the training trials; validation trials may steer early stopping and reports.

        Args:
            data: The subjects of this fit.
            heads: What to predict jointly. Empty for self-supervised stages.
            runtime: Device, seed, reporting, checkpoints.

        Raises:
            ValueError: If the data cannot be fitted (no training trials, NaN voxels, a head without voxels).
        """

    @abc.abstractmethod
    def predict(self, voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
        """Yield predictions in blocks of targets that together cover every head once.

        Args:
            voxels: `(N, V)` float32 of one subject, normalised as in the fit.
            subject: Whose voxels they are; it must have been fitted.
            seed: Seed of sampling encoders; deterministic ones ignore it.

        Yields:
            `{head: Block}`; a block holds all N rows of some targets, so that no head need be in memory whole.

        Raises:
            ValueError: If the subject was not fitted or V differs from the fit.
        """

    @abc.abstractmethod
    def save(self, directory: Path) -> None:
        """Write the state into an existing empty directory (safetensors and JSON, nothing pickled)."""

    @classmethod
    @abc.abstractmethod
    def load(cls, options: Any, directory: Path) -> Self:  # noqa: ANN401 - see __init__
        """Return the encoder that was saved.

        Raises:
            FileNotFoundError: If the directory holds no state.
        """

    @property
    @abc.abstractmethod
    def n_parameters(self) -> int:
        """Number of fitted scalars, for the cost columns of the leaderboard."""


def assemble(blocks: Iterable[Mapping[str, Block]], heads: Sequence[Head], rows: int) -> dict[str, torch.Tensor]:
    """Collect the blocks of `Encoder.predict` into whole heads.

    Args:
        blocks: What `predict` yields.
        heads: The heads that were fitted.
        rows: N, the number of rows predicted.

    Returns:
        For each head `(N, *head.shape)` float32.

    Raises:
        ValueError: If a target is missing, given twice, or a block has another number of rows.
    """
    # NaN, so that a target nobody predicted could not pass for a prediction of 0.
    flat = {head.name: torch.full((rows, head.size), torch.nan) for head in heads}
    covered = {head.name: np.zeros(head.size, dtype=np.int64) for head in heads}
    for part in blocks:
        # Blocks may come in any order and of any width: an encoder cuts heads to suit its memory.
        for name, block in part.items():
            if name not in flat:
                raise ValueError(f"block of head {name!r}; the fit has heads {sorted(flat)}")
            stop = block.start + block.values.shape[1]
            if block.values.shape[0] != rows or block.start < 0 or stop > flat[name].shape[1]:
                raise ValueError(
                    f"head {name!r}: block of shape {tuple(block.values.shape)} at {block.start} does not fit "
                    f"({rows}, {flat[name].shape[1]})"
                )
            flat[name][:, block.start : stop] = block.values.detach().float().cpu()
            covered[name][block.start : stop] += 1
    for name, count in covered.items():
        # A target given twice is as wrong as one left out: whichever block came last would win.
        if not np.all(count == 1):
            raise ValueError(f"head {name!r}: {int((count != 1).sum())} of {count.size} targets not given exactly once")
    return {head.name: flat[head.name].reshape(rows, *head.shape) for head in heads}
