"""Encoded pictures of a dataset's own files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.core.errors import CorruptFileError


def decode(content: bytes, where: str) -> np.ndarray:
    """Return an encoded picture as `(H, W, 3)` uint8 RGB; grey, palette and CMYK pictures are converted.

    Args:
        content: A JPEG, PNG... file's bytes.
        where: The file, for messages.

    Raises:
        CorruptFileError: If it is truncated or no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{where} cannot be read as a picture: {error}") from None
