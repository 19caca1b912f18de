"""Features of pictures: batches through one frozen network at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import xxhash
from torch import Tensor, nn

from eval.networks.base import Network
from eval.pictures import Step, unit_images

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[Precision, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
Places = tuple[list[int], list[int]]
"""The index of each distinct picture's first appearance, and for each picture its place among them."""


@dataclass(frozen=True)
class Extractor:
    """A loaded network, how pictures enter it, and how it computes.

    Attributes:
        network: Its description.
        module: Its weights, on the device to compute on.
        first: Resizing that comes before; None for none.
        resize: Resizing to the network's input; None leaves the size as it is.
        batch: Pictures a forward pass.
        scale: Factor on pixels in [0, 1].
        precision: Of the forward passes; features come out in float32 whatever it is.
    """

    network: Network
    module: nn.Module
    first: Step | None
    resize: Step | None
    batch: int
    scale: float = 1.0
    precision: Precision = "float32"

    def __call__(self, images: Tensor, taps: Sequence[str], places: Places | None = None) -> dict[str, Tensor]:
        """Compute features.

        Args:
            images: `(N, 3, H, W)` uint8 or floating point in [0, 1], anywhere.
            taps: Which layers, of `network.taps`.
            places: What `distinct(images)` gives, where it is known already.

        Returns:
            For each tap `(N, D)` float32 on the CPU.

        Raises:
            ValueError: If a feature is not finite.
        """
        first, place = places or distinct(images)
        if len(first) < len(images):  # the mean image is the answer to every picture: one pass is enough
            alone = list(range(len(first)))
            return {tap: values[place] for tap, values in self(images[first], taps, (alone, alone)).items()}
        features: dict[str, Tensor] = {}
        for start in range(0, len(images), self.batch):
            tapped = self._tapped(images[start : start + self.batch])
            for tap in taps:
                values = self._check(tapped[tap].flatten(1).float(), tap)
                if tap not in features:  # filled in place: joining batches at the end would need twice the memory
                    features[tap] = torch.empty(len(images), values.shape[1])
                features[tap][start : start + self.batch] = values.cpu()
        return features

    def one_batch(self, images: Tensor, tap: str) -> Tensor:
        """Compute one layer's features of as many pictures as fit in one pass, and leave them on the device.

        Args:
            images: `(B, 3, H, W)` uint8 or floating point in [0, 1], anywhere.
            tap: Which layer, of `network.taps`.

        Returns:
            `(B, D)` float32.

        Raises:
            ValueError: If a feature is not finite.
        """
        return self._check(self._tapped(images)[tap].flatten(1).float(), tap)

    def _tapped(self, images: Tensor) -> Mapping[str, Tensor]:
        device = next(self.module.parameters()).device
        reduced = torch.autocast(device.type, DTYPES[self.precision], enabled=self.precision != "float32")
        with torch.inference_mode(), reduced:
            return self.network.forward(self.module, self._pixels(images.to(device)))

    def _check(self, values: Tensor, tap: str) -> Tensor:
        # Of a batch, not of all: torch makes a copy in float64 for this sum.
        if not values.sum(dtype=torch.float64).isfinite():
            raise ValueError(f"{self.network.name} {tap} gave features that are not finite")
        return values

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = unit_images(images).float()
        for step in (self.first, self.resize):
            pixels = step(pixels) if step else pixels
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.network.mean, self.network.std))
        # In place, but never the caller's: fresh memory of that size costs more than the arithmetic.
        owned = pixels if pixels.data_ptr() != images.data_ptr() else pixels.clone()
        return (owned if self.scale == 1 else owned.mul_(self.scale)).sub_(mean).div_(std)


def distinct(images: Tensor) -> Places:
    """Return the index of each distinct picture's first appearance, and for each picture its place among them."""
    places: dict[bytes, int] = {}
    first, place = [], []
    for index, image in enumerate(images.cpu()):
        key = xxhash.xxh3_128_digest(image.contiguous().numpy())
        if key not in places:
            places[key] = len(places)
            first.append(index)
        place.append(places[key])
    return first, place
