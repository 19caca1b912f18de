"""What the network encoders share besides the epoch loop: voxel columns of heads, prediction, files."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from encoders._descent.target_scaling import TargetScaling
from encoders._descent.training import Trainer, TrainingOptions, seeded
from encoders._shared.checks import check_fit, check_voxels, require_fitted
from encoders._shared.columns import group_by_columns
from encoders._shared.state import TENSORS, below, read_state, write_state
from encoders.base import Block, Encoder, Head, Runtime, SubjectData

_ROWS = 512
"""Rows a forward pass of `predict`, so that its memory does not grow with the number of trials."""


class HeadLayers(nn.Module):
    """One linear output layer for each head."""

    def __init__(self, width: int, heads: Sequence[Head]) -> None:
        """Make the layers.

        Args:
            width: Features of the trunk.
            heads: What to predict.
        """
        super().__init__()
        self.names = [head.name for head in heads]
        self.layers = nn.ModuleList(nn.Linear(width, head.size) for head in heads)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `{head: (B, D)}` from `(B, width)`."""
        return {name: layer(features) for name, layer in zip(self.names, self.layers, strict=True)}


class HeadNetwork(nn.Module, abc.ABC):
    """A trunk from voxels to features, and an output layer for each head.

    `outputs` comes last in a subclass' `__init__`: parameters are drawn in the order in which they are made.
    """

    outputs: HeadLayers

    @abc.abstractmethod
    def features(self, voxels: torch.Tensor, subject: str) -> torch.Tensor:
        """Return `(B, width)` from `(B, V)`; a subject is named in text, as the keys of `ModuleDict` are."""

    def forward(self, voxels: torch.Tensor, subject: int) -> dict[str, torch.Tensor]:
        """Return `{head: (B, D)}` from `(B, V)` voxels of a subject."""
        outputs: dict[str, torch.Tensor] = self.outputs(self.features(voxels, str(subject)))
        return outputs


class VoxelNetwork(nn.Module):
    """One member network for each distinct choice of voxel columns: heads with the same ROI share a trunk."""

    def __init__(self, subjects: Sequence[int], heads: Sequence[Head]) -> None:
        """Group the heads; `members` is filled by the encoder, one network a group.

        Args:
            subjects: The subjects of the fit.
            heads: What to predict.
        """
        super().__init__()
        groups = group_by_columns(heads, subjects).values()
        self.groups = [[head for _, head in group] for group in groups]
        self.members = nn.ModuleList()

    def forward(self, voxels: torch.Tensor, subject: int) -> dict[str, torch.Tensor]:
        """Return `{head: (B, D)}` from `(B, V)` voxels of a subject."""
        outputs: dict[str, torch.Tensor] = {}
        for group, member in zip(self.groups, self.members, strict=True):
            outputs |= member(group[0].select(voxels, subject), subject)
        return outputs


class NetworkEncoder(Encoder):
    """An encoder whose state is one network and the scaling of its targets: its fit, prediction and files."""

    network: ClassVar[type[HeadNetwork]]
    """`network(n_voxels, heads, options)` makes an untrained network for heads that see the same voxels; `n_voxels`
    says for each subject how many."""

    options: TrainingOptions

    def __init__(self, options: TrainingOptions) -> None:
        super().__init__(options)
        self._network: VoxelNetwork | None = None
        self._scaling = TargetScaling({}, {})
        self._heads: list[Head] = []
        self._n_voxels: dict[int, int] = {}

    def fit(self, data: Mapping[int, SubjectData], heads: Sequence[Head], runtime: Runtime) -> None:
        """Train the network; see `Encoder.fit`. Parameters of `runtime.initial` with the same name and shape start it.

        Raises:
            ValueError: If the data cannot be fitted, training diverges, or nothing of `runtime.initial` fits.
        """
        check_fit(data, heads)
        self._heads, self._n_voxels = list(heads), {subject: trials.n_voxels for subject, trials in data.items()}
        # On the CPU whatever the device: the first weights of a seed are the same everywhere.
        with seeded(runtime.seed, torch.device("cpu")):
            network = self._assemble()
        if runtime.initial is not None:
            self._start_from(network, runtime.initial)
        trainer = Trainer(network, data, heads, self.options, runtime)
        trainer.run()
        self._network, self._scaling = network, trainer.scaling

    def _assemble(self) -> VoxelNetwork:
        """Return the untrained network of the fit's subjects and heads."""
        network = VoxelNetwork(list(self._n_voxels), self._heads)
        for group in network.groups:
            columns = group[0].columns
            sizes = {
                subject: total if columns is None else len(columns[subject])
                for subject, total in self._n_voxels.items()
            }
            network.members.append(type(self).network(sizes, group, self.options))
        return network

    def _start_from(self, network: VoxelNetwork, directory: Path) -> None:
        """Copy the parameters of an earlier stage of the same encoder; new subjects keep their fresh input layers."""
        _, _, tensors = read_state(directory, self.name())
        own = network.state_dict()
        earlier = below(tensors, "network/")
        fitting = {name: value for name, value in earlier.items() if name in own and value.shape == own[name].shape}
        if not fitting:
            path = directory / TENSORS
            raise ValueError(f"no parameter of {path} has the name and shape of one of this {self.name()}")
        # What has another shape here (a new subject's input layer) keeps its fresh values.
        network.load_state_dict(own | fitting)

    def predict(self, voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
        """Yield one block a head; see `Encoder.predict`."""
        network = require_fitted(self._network, self.name())
        # Here and not in the generator below, which would not run before its first block is asked for.
        check_voxels(voxels, subject, self._n_voxels)
        return self._predict(network, voxels, subject)

    @torch.no_grad()
    def _predict(self, network: VoxelNetwork, voxels: torch.Tensor, subject: int) -> Iterator[Mapping[str, Block]]:
        """Yield the heads, computed in chunks of rows."""
        # The fit may have left the network on another device than the voxels come from.
        device = next(network.parameters()).device
        network.eval()
        parts: dict[str, list[torch.Tensor]] = {head.name: [] for head in self._heads}
        for rows in voxels.split(_ROWS):
            for name, values in network(rows.to(device), subject).items():
                parts[name].append(self._scaling.restore(name, values).to(voxels.device))
        for name, values in parts.items():
            yield {name: Block(0, torch.cat(values))}

    def save(self, directory: Path) -> None:
        """Write the parameters and the scaling of targets; see `Encoder.save`."""
        network = require_fitted(self._network, self.name())
        tensors = {f"network/{name}": value for name, value in network.state_dict().items()}
        for name in self._scaling.mean:
            tensors[f"mean/{name}"] = self._scaling.mean[name]
            tensors[f"scale/{name}"] = self._scaling.scale[name]
        # Pairs, since JSON would turn the keys of a mapping into text.
        facts = {"n_voxels": [[subject, count] for subject, count in self._n_voxels.items()]}
        write_state(directory, self.name(), facts, self._heads, tensors)

    @classmethod
    def load(cls, options: TrainingOptions, directory: Path) -> Self:
        """Return the encoder that was saved; see `Encoder.load`."""
        facts, heads, tensors = read_state(directory, cls.name())
        encoder = cls(options)
        encoder._heads, encoder._n_voxels = heads, dict(facts["n_voxels"])
        # Its first weights are drawn and at once replaced; the fit seeds its own, so the draw moves no other.
        network = encoder._assemble()
        network.load_state_dict(below(tensors, "network/"))
        encoder._network = network.eval()
        encoder._scaling = TargetScaling(below(tensors, "mean/"), below(tensors, "scale/"))
        return encoder

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters, subjects' own layers included."""
        return sum(parameter.numel() for parameter in require_fitted(self._network, self.name()).parameters())
