"""Pictures as the generators' published scripts resize them, against Pillow picture by picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_outputs import pictures
from PIL import Image

from bench.generators._diffusion.resizing import resized

METHODS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [40, 64, 130])
def test_every_picture_is_pillows(method: Image.Resampling, side: int) -> None:
    images = pictures(2, 90)[:, :, :70]
    assert images.shape == (2, 3, 70, 90)
    made = resized(images, side, method)
    assert (made.shape, made.dtype) == ((2, 3, side, side), torch.uint8)
    for image, square in zip(images, made, strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize((side, side), method)
        np.testing.assert_array_equal(square.permute(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("method", METHODS)
def test_pictures_of_the_size_stay_as_they_are(method: Image.Resampling) -> None:
    assert torch.equal(resized(pictures(2, 64), 64, method), pictures(2, 64))


def test_every_level_becomes_the_float_of_the_published_scripts() -> None:
    """They divide NumPy arrays; the generators divide tensors, to the same last digit."""
    levels = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(levels.float() / 127.5 - 1, levels.numpy().astype(np.float32) / 127.5 - 1)


def test_no_pictures_are_no_squares() -> None:
    made = resized(torch.zeros(0, 3, 70, 90, dtype=torch.uint8), 64, Image.Resampling.BICUBIC)
    assert (made.shape, made.dtype) == ((0, 3, 64, 64), torch.uint8)
