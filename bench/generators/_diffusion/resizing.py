"""Pictures made square of a given size, as the published scripts make them: by Pillow, whatever the aspect was."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def resized(images: torch.Tensor, side: int, method: Image.Resampling) -> torch.Tensor:
    """Return pictures `(B, 3, H, W)` uint8 as `(B, 3, side, side)` uint8 on the CPU; B may be 0.

    Args:
        images: On any device.
        side: Pixels of a side.
        method: Pillow's filter. It is as wide as a pixel of the smaller picture, where torch's `interpolate` by default
            skips pixels when it shrinks: the two give other numbers.
    """
    images = images.cpu()
    # Pillow copies a picture that has the size already; a batch of 512 px pictures need not go through it.
    if len(images) == 0 or tuple(images.shape[-2:]) == (side, side):
        return images if len(images) else images.new_empty(0, 3, side, side)
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    arrays = np.stack([np.asarray(picture.resize((side, side), method)) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)
