"""BRAID's transformer over patches of voxels.

The notebook of BRAID cuts the voxel axis into patches of 89 voxels (zeros fill the last), embeds each in 256
dimensions, prepends a class token, and applies four transformer layers (8 heads, 2048 feed-forward units, dropout 0.1,
normalisation after each block); the class token goes through one ReLU layer of 2048 units to the latent. It has no
position embedding, so the patches are an unordered set to it. It trains with AdamW at 3e-4, decay 1e-2 and a cosine
schedule, in batches of 512 for 200 epochs, on the squared error plus 0.1 times one minus the cosine similarity, with
all trials. Its recipe here sets these values, on the training trials only. Learned positions, filling the last patch by
going round to the first voxels, standardised targets, early stopping and the smaller defaults are this project's
choice. So are several subjects, which share all but the patch embedding and the positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from encoders._descent.network import HeadLayers, HeadNetwork, NetworkEncoder
from encoders._descent.training import TrainingOptions
from encoders._shared.checks import check_numbers, check_positive
from encoders.base import Head


@dataclass(frozen=True)
class BraidTransformerOptions(TrainingOptions):
    """Options of `braid-transformer`, besides those of training.

    Attributes:
        patch: Voxels a token; BRAID's is 89.
        pad: What fills the last patch: the first voxels again ("wrap"), or zeros as in BRAID.
        positions: Whether tokens carry learned positions; BRAID's do not.
        width: Dimensions of a token; BRAID's is 256.
        depth: Transformer layers; BRAID's is 4.
        attention_heads: Attention heads a layer; BRAID's is 8.
        feedforward: Units between the layers' two dense maps; BRAID's is 2048.
        hidden: Width of the last hidden layer; BRAID's is 2048.
        dropout: Within the transformer layers; BRAID's is 0.1.
    """

    patch: int = 64
    pad: Literal["wrap", "zero"] = "wrap"
    positions: bool = True
    width: int = 64
    depth: int = 2
    attention_heads: int = 4
    feedforward: int = 128
    hidden: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        check_positive(self, ("patch", "width", "depth", "attention_heads", "feedforward", "hidden"))
        if self.width % self.attention_heads:
            raise ValueError(f"option width is {self.width}; it must be a multiple of {self.attention_heads} heads")
        check_numbers(self, ("dropout",), lambda share: 0 <= share < 1, "at least 0 and below 1")


class _Patches(nn.Module):
    """Tokens of one subject: `(B, V)` voxels to `(B, patches, width)`."""

    def __init__(self, n_voxels: int, options: BraidTransformerOptions) -> None:
        super().__init__()
        self.size = options.patch
        count = math.ceil(n_voxels / options.patch)
        self.missing = count * options.patch - n_voxels
        self.wrap = options.pad == "wrap"
        self.embedding = nn.Linear(options.patch, options.width)
        # .02 as for the embeddings of BERT and ViT: small beside the tokens they are added to.
        self.positions = nn.Parameter(0.02 * torch.randn(count, options.width)) if options.positions else None

    def forward(self, voxels: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        if self.wrap:
            # Going round by index also works where a subject has fewer voxels than are missing.
            order = torch.arange(voxels.shape[1] + self.missing, device=voxels.device) % voxels.shape[1]
            padded = voxels[:, order]
        else:
            padded = functional.pad(voxels, (0, self.missing))
        tokens: torch.Tensor = self.embedding(padded.unflatten(1, (-1, self.size)))
        return tokens if self.positions is None else tokens + self.positions


class _Transformer(HeadNetwork):
    """Patches for each subject, shared transformer layers, an output layer for each head."""

    def __init__(self, n_voxels: Mapping[int, int], heads: Sequence[Head], options: BraidTransformerOptions) -> None:
        super().__init__()
        self.patches = nn.ModuleDict({str(subject): _Patches(count, options) for subject, count in n_voxels.items()})
        self.summary = nn.Parameter(torch.randn(1, 1, options.width))
        # Nested tensors serve padded sequences; here every subject's patches are all real.
        layer = nn.TransformerEncoderLayer(
            options.width, options.attention_heads, options.feedforward, options.dropout, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, options.depth, enable_nested_tensor=False)
        self.hidden = nn.Linear(options.width, options.hidden)
        self.outputs = HeadLayers(options.hidden, heads)

    def features(self, voxels: torch.Tensor, subject: str) -> torch.Tensor:
        """Return the hidden layer over the class token; see `HeadNetwork.features`."""
        tokens = self.patches[subject](voxels)
        # Under autocast tokens are bfloat16 while the parameter stays float32.
        summary = self.summary.to(tokens.dtype).expand(len(tokens), -1, -1)
        states = self.layers(torch.cat([summary, tokens], dim=1))
        return torch.relu(self.hidden(states[:, 0]))


class BraidTransformer(NetworkEncoder):
    """BRAID's transformer for any number of heads and subjects."""

    version = 1
    Options: ClassVar[type] = BraidTransformerOptions
    network = _Transformer
