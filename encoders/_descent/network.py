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
from encoders._shared.checks import check_fit, check_voxels
from encoders._shared.state import TENSORS, read_state, write_state
from encoders._shared.training_rows import columns_key
from encoders.base import Block, Head, Runtime, SubjectData

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


class VoxelNetwork(nn.Module):
    """One member network for each distinct choice of voxel columns: heads with the same ROI share a trunk."""

    def __init__(self, subjects: Sequence[int], heads: Sequence[Head]) -> None:
        """Group the heads; `members` is filled by the encoder, one network a group.

        Args:
            subjects: The subjects of the fit.
            heads: What to predict.
        """
        super().__init__()
        groups: dict[tuple[str, ...], list[Head]] = {}
        for head in heads:
            # The key spans all subjects: heads share a trunk only where they see the same voxels in everyone.
            groups.setdefault(tuple(columns_key(head, subject) for subject in subjects), []).append(head)
        self.groups = list(groups.values())
        self.members = nn.ModuleList()

    def forward(self, voxels: torch.Tensor, subject: int) -> dict[str, torch.Tensor]:
        """Return `{head: (B, D)}` from `(B, V)` voxels of a subject."""
        outputs: dict[str, torch.Tensor] = {}
        for group, member in zip(self.groups, self.members, strict=True):
            outputs |= member(group[0].select(voxels, subject), subject)
        return outputs


class NetworkFit(abc.ABC):
    """Fit, prediction and files of an encoder whose state is one network and the scaling of its targets.

    A mixin: the encoder adds `name` and `build` and derives from `Encoder` too.
    """

    name: ClassVar[str]
    """The encoder's name in recipes."""

    options: TrainingOptions

    def __init__(self, options: TrainingOptions) -> None:
        self.options = options
        self._network: VoxelNetwork | None = None
        self._scaling = TargetScaling({}, {})
        self._heads: list[Head] = []
        self._n_voxels: dict[int, int] = {}

    @abc.abstractmethod
    def build(self, n_voxels: Mapping[int, int], heads: Sequence[Head]) -> nn.Module:
        """Return an untrained network for heads that use the same voxels.

        Args:
            n_voxels: For each subject how many voxels these heads use.
            heads: What it predicts.

        Returns:
            A module whose `forward(voxels, subject)` maps `(B, V)` to `{head: (B, D)}`.
        """

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
            network.members.append(self.build(sizes, group))
        return network

    def _start_from(self, network: VoxelNetwork, directory: Path) -> None:
        """Copy the parameters of an earlier stage of the same encoder; new subjects keep their fresh input layers."""
        _, _, tensors = read_state(directory, self.name)
        own = network.state_dict()
        shared = {name: tensors[f"network/{name}"] for name in own if f"network/{name}" in tensors}
        fitting = {name: value for name, value in shared.items() if value.shape == own[name].shape}
        if not fitting:
            raise ValueError(f"no parameter of {directory / TENSORS} has the name and shape of one of this {self.name}")
        # What has another shape here (a new subject's input layer) keeps its fresh values.
        network.load_state_dict(own | fitting)

    def predict(self, voxels: torch.Tensor, subject: int, seed: int) -> Iterator[Mapping[str, Block]]:
        """Yield one block a head; see `Encoder.predict`."""
        network = self._fitted()
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

    def _fitted(self) -> VoxelNetwork:
        """Return the network.

        Raises:
            ValueError: If there was no fit.
        """
        if self._network is None:
            raise ValueError(f"this {self.name} was not fitted; fit or load it first")
        return self._network

    def save(self, directory: Path) -> None:
        """Write the parameters and the scaling of targets; see `Encoder.save`."""
        tensors = {f"network/{name}": value for name, value in self._fitted().state_dict().items()}
        for name in self._scaling.mean:
            tensors[f"mean/{name}"] = self._scaling.mean[name]
            tensors[f"scale/{name}"] = self._scaling.scale[name]
        # Pairs, since JSON would turn the keys of a mapping into text.
        facts = {"n_voxels": [[subject, count] for subject, count in self._n_voxels.items()]}
        write_state(directory, self.name, facts, self._heads, tensors)

    @classmethod
    def load(cls, options: TrainingOptions, directory: Path) -> Self:
        """Return the encoder that was saved; see `Encoder.load`."""
        facts, heads, tensors = read_state(directory, cls.name)
        encoder = cls(options)
        encoder._heads, encoder._n_voxels = heads, dict(facts["n_voxels"])
        # Its first weights are drawn and at once replaced; the fit seeds its own, so the draw moves no other.
        network = encoder._assemble()
        network.load_state_dict(
            {name.removeprefix("network/"): value for name, value in tensors.items() if name.startswith("network/")}
        )
        encoder._network = network.eval()
        encoder._scaling = TargetScaling(
            {head.name: tensors[f"mean/{head.name}"] for head in heads},
            {head.name: tensors[f"scale/{head.name}"] for head in heads},
        )
        return encoder

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters, subjects' own layers included."""
        return sum(parameter.numel() for parameter in self._fitted().parameters())
