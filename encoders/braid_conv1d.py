"""BRAID's one-dimensional convolutional network over the voxel axis.

The notebook of BRAID stacks three convolutions over the voxels in the order of the mask (1 to 32, 64 and 128 channels,
kernels 9, 5 and 3, stride 1), each with batch normalisation and ReLU, pools the axis to 64 positions, and maps the
flattened features through one hidden layer of 4096 units to the latent. It trains with Adam at 1e-4, L2 decay 1e-5,
batches of 512, at most 200 epochs with patience 10 on the validation loss, on latents that are not standardised.
Its recipe here sets these values; early stopping follows the validation correlation and targets are standardised,
as for every network here. Strides and the smaller defaults are this project's choice: at stride 1 an epoch costs
some 30 times more. So are several subjects, which the notebook has no case for: they share the convolutions, and
each has a first dense layer of its own, because position on the axis means another place in another brain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from encoders._descent.network import HeadLayers, HeadNetwork, NetworkEncoder
from encoders._descent.training import TrainingOptions
from encoders._shared.checks import check_numbers, check_positive
from encoders.base import Head


@dataclass(frozen=True)
class BraidConv1dOptions(TrainingOptions):
    """Options of `braid-conv1d`, besides those of training.

    Attributes:
        channels: Channels of each convolution; BRAID's are 32, 64 and 128.
        kernels: Odd kernel widths in voxels, one a convolution; BRAID's are 9, 5 and 3.
        strides: Strides, one a convolution; BRAID's are all 1.
        positions: Length of the axis after adaptive average pooling; BRAID's is 64.
        hidden: Width of the dense layer; BRAID's is 4096.
    """

    channels: tuple[int, ...] = (16, 32, 32)
    kernels: tuple[int, ...] = (9, 5, 3)
    strides: tuple[int, ...] = (2, 2, 2)
    positions: int = 32
    hidden: int = 512

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        check_positive(self, ("channels", "kernels", "strides", "positions", "hidden"))
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError(
                f"options channels {self.channels}, kernels {self.kernels} and strides {self.strides} must have one "
                "entry for each convolution"
            )
        check_numbers(self, ("kernels",), lambda width: width % 2 == 1, "odd, so that no kernel is off centre")


class _Convolutions(HeadNetwork):
    """Shared convolutions, a dense layer for each subject, an output layer for each head."""

    def __init__(self, n_voxels: Mapping[int, int], heads: Sequence[Head], options: BraidConv1dOptions) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels, kernel, stride in zip(options.channels, options.kernels, options.strides, strict=True):
            # Half a kernel of zeros at both ends: at stride 1 the axis keeps its length.
            convolution = nn.Conv1d(before, channels, kernel, stride=stride, padding=kernel // 2)
            layers += [convolution, nn.BatchNorm1d(channels), nn.ReLU()]
            before = channels
        # Pooling to a fixed length is what lets subjects with other voxel counts share all that follows.
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(options.positions), nn.Flatten())
        width = before * options.positions
        self.dense = nn.ModuleDict({str(subject): nn.Linear(width, options.hidden) for subject in n_voxels})
        self.outputs = HeadLayers(options.hidden, heads)

    def features(self, voxels: torch.Tensor, subject: str) -> torch.Tensor:
        """Return the dense layer of the subject; see `HeadNetwork.features`."""
        # One input channel: the voxel axis is the picture.
        return torch.relu(self.dense[subject](self.convolutions(voxels[:, None])))


class BraidConv1d(NetworkEncoder):
    """BRAID's 1-D convolutional network for any number of heads and subjects."""

    version = 1
    Options: ClassVar[type] = BraidConv1dOptions
    network = _Convolutions
