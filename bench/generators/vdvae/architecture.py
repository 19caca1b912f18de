"""The very deep VAE for ImageNet-64 as published: which blocks at which resolutions, and the order of its latents.

Child 2021, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images": 75 groups of latents,
coarse to fine, 125 M parameters. Brain-Diffuser (Ozcelik & VanRullen 2023) predicts the first 31 groups, flattened one
after the other, each in the order channel, row, column:

    groups       resolution    numbers
    0  .. 1       1 x  1        2 x     16
    2  .. 5       4 x  4        4 x    256
    6  .. 13      8 x  8        8 x  1,024
    14 .. 29     16 x 16       16 x  4,096
    30           32 x 32        1 x 16,384    = 91,168

Groups 31 to 61 are 32 x 32 too, 62 to 74 are 64 x 64; they are left to the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

PICTURE_SIZE = 64
CHANNELS_PER_LATENT = 16
"""Channels of every group of latents (`zdim`)."""
PREDICTED_GROUPS = 31
MIXTURES = 10
"""Logistic components of a pixel's distribution."""
WIDTH = 512
"""Channels of the published model. Other checkpoints may be narrower; nothing else about them may differ."""
BOTTLENECK = 4
"""A block's inner layers have this part of the width (`bottleneck_multiple` .25)."""


@dataclass(frozen=True)
class EncoderBlock:
    """One block of the encoder.

    Attributes:
        size: Height and width of what it works on.
        shrink: Factor of the average pooling that follows it, 1 for none.
    """

    size: int
    shrink: int = 1


@dataclass(frozen=True)
class DecoderBlock:
    """One block of the decoder: one group of latents.

    Attributes:
        size: Height and width of its latents and of what it works on.
        grown_from: Resolution whose state is enlarged and added before it, None where it continues its own.
    """

    size: int
    grown_from: int | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of its group of latents."""
        return (CHANNELS_PER_LATENT, self.size, self.size)


def encoder_blocks() -> tuple[EncoderBlock, ...]:
    """Return the 65 blocks of the encoder: `64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5`."""
    blocks: list[EncoderBlock] = []
    # The last block of a resolution is the one that shrinks.
    for size, plain, shrink in ((64, 11, 2), (32, 20, 2), (16, 9, 2), (8, 8, 2), (4, 7, 4)):
        blocks += [EncoderBlock(size)] * plain + [EncoderBlock(size, shrink)]
    return (*blocks, *[EncoderBlock(1)] * 5)


def decoder_blocks() -> tuple[DecoderBlock, ...]:
    """Return the 75 blocks of the decoder: `1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12`."""
    blocks = [DecoderBlock(1)] * 2
    # The first block of a resolution starts from the state of the coarser one.
    for size, before, plain in ((4, 1, 3), (8, 4, 7), (16, 8, 15), (32, 16, 31), (64, 32, 12)):
        blocks += [DecoderBlock(size, before)] + [DecoderBlock(size)] * plain
    return tuple(blocks)


def predicted_shapes() -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of the first 31 groups of latents, in published order."""
    return tuple(block.latent_shape for block in decoder_blocks()[:PREDICTED_GROUPS])


PREDICTED_NUMBERS = sum(prod(shape) for shape in predicted_shapes())
