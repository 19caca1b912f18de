"""Pictures on their way into metrics and networks: validation, resizing, normalisation constants, digests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor
from torch.nn import functional

Triple = tuple[float, float, float]
"""A number for each of red, green and blue."""

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
"""Of ImageNet's training pictures in [0, 1]: what torchvision's networks expect subtracted and divided out."""
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""The same of the pictures that OpenAI's CLIP was trained on."""


@dataclass(frozen=True)
class Resize:
    """One resizing step, on tensors as `torchvision.transforms.Resize` does it.

    Attributes:
        size: Height and width afterwards.
        antialias: Whether to smooth before shrinking. torchvision's default for tensors was False before 0.17.
        interpolation: Kernel.
    """

    size: int
    antialias: bool
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Resize `(B, 3, H, W)` floating-point images; those of the right size already pass unchanged."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        # As channels of one image: on a CPU torch's kernel for more than three of them is up to 5 times as fast. Its
        # last digits differ, so that a picture that comes alone takes it too, twice, and no batch size shows.
        count, (height, width) = len(images), images.shape[-2:]
        if _is_planes_last(images):  # which torch knows as channels-last
            planes = images.permute(2, 3, 0, 1).reshape(1, height, width, -1).permute(0, 3, 1, 2)
        else:
            planes = images.reshape(1, -1, height, width).contiguous()
        resized = functional.interpolate(
            planes if count > 1 else torch.cat([planes, planes], 1),
            (self.size, self.size),
            mode=self.interpolation,
            align_corners=False,
            antialias=self.antialias,
        )
        return resized.view(-1, images.shape[1], self.size, self.size)[:count]

    def describe(self) -> str:
        """Return the step in words."""
        return f"{self.size} px {self.interpolation}{' antialiased' if self.antialias else ' without antialias'}"


@dataclass(frozen=True)
class PilResize:
    """One resizing step on picture files, as `PIL.Image.resize` does it: antialiased, and rounded to 8 bits.

    Attributes:
        size: Height and width afterwards.
        interpolation: Kernel.
    """

    size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Resize `(B, 3, H, W)` floating-point images in [0, 1]; the results are multiples of 1 / 255."""
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[self.interpolation]
        resized = np.stack(
            [np.asarray(Image.fromarray(each).resize((self.size, self.size), kernel)) for each in levels]
        )
        return torch.from_numpy(resized).permute(0, 3, 1, 2).to(images) / 255

    def describe(self) -> str:
        """Return the step in words."""
        return f"{self.size} px {self.interpolation} by PIL, antialiased, rounded to 8 bits"


Step = Resize | PilResize
"""What may happen to the size of a picture."""


def check_images(images: Tensor, side: str, dimensions: tuple[int, ...]) -> None:
    """Check that a tensor holds pictures.

    Args:
        images: `(N, 3, H, W)` or `(N, S, 3, H, W)`.
        side: What they are, for the message.
        dimensions: Allowed numbers of axes.

    Raises:
        ValueError: If the shape, the type or a value is not that of RGB pictures; names the image.
    """
    allowed = "uint8, or floating point in [0, 1], of shape " + " or ".join(
        {4: "(N, 3, H, W)", 5: "(N, S, 3, H, W)"}[d] for d in dimensions
    )
    if images.ndim not in dimensions or images.shape[-3] != 3 or images.numel() == 0:
        raise ValueError(f"{side} must be {allowed}; got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"{side} must be {allowed}; got {images.dtype}")
    for index, image in enumerate(images):  # one at a time: no second copy of all pictures
        low, high = (float(value) for value in torch.aminmax(image))
        if not (low >= 0 and high <= 1):  # also false for NaN
            hint = "; divide 0-255 floats by 255 first" if high > 2 else ""
            raise ValueError(f"{side} must be {allowed}; image {index} has values from {low:g} to {high:g}{hint}")


def planes_last(images: Tensor) -> Tensor:
    """Return pictures `(B, C, H, W)` laid out in memory as `(H, W, B, C)`: the values of all pictures at one place.

    Shape and values stay. One vector instruction then serves several pictures: without antialias, resizing eight of
    them is four times as fast.
    """
    if _is_planes_last(images):
        return images
    count, channels, height, width = images.shape
    laid = images.new_empty(height, width, count, channels)
    for channel in range(channels):  # one at a time: a fifth of the time that torch takes for all at once
        laid[..., channel].copy_(images[:, channel].permute(1, 2, 0))
    return laid.permute(2, 3, 0, 1)


def _is_planes_last(images: Tensor) -> bool:
    return images.permute(2, 3, 0, 1).is_contiguous()


def digest_images(images: Tensor) -> str:
    """Return a digest of pictures: of their shape, type and values.

    XXH3 in 128 bits: no secret depends on it, and it reads twenty times as fast as sha256.
    """
    content = xxhash.xxh3_128(f"{tuple(images.shape)} {images.dtype}".encode())
    for image in images:
        content.update(image.detach().cpu().contiguous().numpy())
    return content.hexdigest()
