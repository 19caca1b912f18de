"""BRAID's multilayer perceptron from voxels to image latents.

The notebook of BRAID trains Linear 2048 - Linear 4096 - Linear 16384 (a 4x64x64 SDXL latent), LayerNorm, ReLU and
dropout 0.5 after each hidden layer, with Adam at 1e-4, batches of 512, mean squared error on latents standardised over
all data, for 200 epochs, without weight decay, early stopping or a choice of epoch. Its recipe here sets these values;
the statistics come from training trials only. AdamW, early stopping and the smaller defaults below are this
project's choice, and so is what the notebook has no case for: several heads share the hidden layers, and several
subjects share all but the first layer.
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
class BraidMlpOptions(TrainingOptions):
    """Options of `braid-mlp`, besides those of training.

    Attributes:
        hidden: Widths of the hidden layers; BRAID's are 2048 and 4096. The last layer has the size of the head.
        dropout: Share of hidden units that is dropped.
    """

    hidden: tuple[int, ...] = (2048, 4096)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        check_positive(self, ("hidden",))
        check_numbers(self, ("dropout",), lambda share: 0 <= share < 1, "at least 0 and below 1")


class _Perceptron(HeadNetwork):
    """First layers for each subject, shared hidden layers, an output layer for each head."""

    def __init__(self, n_voxels: Mapping[int, int], heads: Sequence[Head], options: BraidMlpOptions) -> None:
        super().__init__()
        widths = list(options.hidden)
        # Keys are text, as ModuleDict demands.
        self.first = nn.ModuleDict({str(subject): nn.Linear(count, widths[0]) for subject, count in n_voxels.items()})
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            if index:
                layers.append(nn.Linear(widths[index - 1], width))
            # The notebook's order: normalised before the nonlinearity, dropped last.
            layers += [nn.LayerNorm(width), nn.ReLU(), nn.Dropout(options.dropout)]
        self.trunk = nn.Sequential(*layers)
        self.outputs = HeadLayers(widths[-1], heads)

    def features(self, voxels: torch.Tensor, subject: str) -> torch.Tensor:
        """Return the last hidden layer; see `HeadNetwork.features`."""
        hidden: torch.Tensor = self.trunk(self.first[subject](voxels))
        return hidden


class BraidMlp(NetworkEncoder):
    """BRAID's MLP for any number of heads and subjects."""

    version = 1
    Options: ClassVar[type] = BraidMlpOptions
    network = _Perceptron
