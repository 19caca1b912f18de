"""Features of pictures: batches through one frozen network at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eval.images import Resize
from eval.metrics.base import unit_images
from eval.networks.base import Network


@dataclass(frozen=True)
class Extractor:
    """A loaded network and how pictures enter it.

    Attributes:
        network: Its description.
        module: Its weights, on the device to compute on.
        first: Resizing that comes before.
        resize: Resizing to the network's input.
        batch: Pictures a forward pass.
    """

    network: Network
    module: nn.Module
    first: Resize
    resize: Resize
    batch: int

    def __call__(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Compute features.

        Args:
            images: `(N, 3, H, W)` uint8 or floating point in [0, 1], anywhere.
            taps: Which layers, of `network.taps`.

        Returns:
            For each tap `(N, D)` float32 on the CPU.

        Raises:
            ValueError: If a feature is not finite.
        """
        device = next(self.module.parameters()).device
        features: dict[str, Tensor] = {}
        for start in range(0, len(images), self.batch):
            with torch.inference_mode():
                tapped = self.network.forward(self.module, self._pixels(images[start : start + self.batch].to(device)))
            for tap in taps:
                values = tapped[tap].flatten(1).float()
                if tap not in features:  # filled in place: joining batches at the end would need twice the memory
                    features[tap] = torch.empty(len(images), values.shape[1])
                features[tap][start : start + self.batch] = values.cpu()
        for tap, values in features.items():
            if not values.sum(dtype=torch.float64).isfinite():
                raise ValueError(f"{self.network.name} {tap} gave features that are not finite")
        return features

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = self.resize(self.first(unit_images(images).float()))
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.network.mean, self.network.std))
        return (pixels - mean) / std
