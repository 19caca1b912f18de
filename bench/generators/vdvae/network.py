"""The network of the very deep VAE: names and shapes of its state dict are those of OpenAI's checkpoints.

Activations are `(B, width, size, size)`. A block is four convolutions, each after a GELU: 1x1 to a quarter of the
width, twice 3x3 (1x1 where a picture is a single pixel), 1x1 back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.generators.vdvae import architecture as layout
from bench.generators.vdvae.gaussian import Gaussian

Choose = Callable[[int, Tensor, Gaussian], Tensor]
"""`choose(group, state, prior)` gives the latents `(B, 16, size, size)` of a group."""


class Block(nn.Module):
    """Four convolutions; their sum with the input where `residual`, average-pooled where `shrink` exceeds 1."""

    def __init__(
        self, channels: tuple[int, int, int], size: int, residual: bool = False, shrink: int = 1, gain: float = 1.0
    ) -> None:
        """Make a block.

        Args:
            channels: Of input, inner layers and output.
            size: Height and width of its input.
            residual: Whether the input is added to the output.
            shrink: Factor of average pooling.
            gain: Factor of the last layer's initial weights.
        """
        super().__init__()
        self.residual, self.shrink = residual, shrink
        before, inner, after = channels
        kernel = 3 if size > 2 else 1
        self.c1 = _convolution(before, inner, 1)
        self.c2 = _convolution(inner, inner, kernel)
        self.c3 = _convolution(inner, inner, kernel)
        self.c4 = _convolution(inner, after, 1, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, after, size / shrink, size / shrink)`."""
        out = x
        for layer in (self.c1, self.c2, self.c3, self.c4):
            out = layer(functional.gelu(out))
        out = x + out if self.residual else out
        return functional.avg_pool2d(out, self.shrink) if self.shrink > 1 else out


class Encoder(nn.Module):
    """Bottom-up: from a picture to its activations at 64, 32, 16, 8, 4 and 1 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        blocks = layout.encoder_blocks()
        # Each of n residual blocks adds 1/n of the variance at first, so that depth does not blow it up (Child 2021).
        gain, channels = sqrt(1 / len(blocks)), (width, width // layout.BOTTLENECK, width)
        self.in_conv = _convolution(3, width, 3)
        self.enc_blocks = nn.ModuleList(Block(channels, b.size, True, b.shrink, gain) for b in blocks)

    def forward(self, pictures: Tensor) -> dict[int, Tensor]:
        """Return the last activations at each resolution.

        Args:
            pictures: `(B, 3, 64, 64)`, normalised.
        """
        x = self.in_conv(pictures)
        activations = {x.shape[-1]: x}
        for block in self.enc_blocks:
            x = block(x)
            activations[x.shape[-1]] = x
        return activations


class LatentBlock(nn.Module):
    """One group of latents: its prior given coarser groups, its posterior given the picture too, and its effect."""

    def __init__(self, block: layout.DecoderBlock, width: int, gain: float) -> None:
        super().__init__()
        self.layout = block
        inner, parameters = width // layout.BOTTLENECK, 2 * layout.CHANNELS_PER_LATENT
        self.enc = Block((2 * width, inner, parameters), block.size)
        # Untrained priors say nothing (gain 0): mean 0, deviation 1, nothing added to the state.
        self.prior = Block((width, inner, parameters + width), block.size, gain=0.0)
        self.z_proj = _convolution(layout.CHANNELS_PER_LATENT, width, 1, gain)
        self.resnet = Block((width, inner, width), block.size, residual=True, gain=gain)

    def look_ahead(self, state: Tensor) -> tuple[Gaussian, Tensor]:
        """Return the prior of the latents, and the state with what the prior's network adds to it."""
        parameters, added = self.prior(state).split((2 * layout.CHANNELS_PER_LATENT, state.shape[1]), dim=1)
        return _gaussian(parameters), state + added

    def posterior(self, state: Tensor, activations: Tensor) -> Gaussian:
        """Return the posterior of the latents given the state before `look_ahead` and the encoder's activations."""
        return _gaussian(self.enc(torch.cat([state, activations], dim=1)))

    def absorb(self, state: Tensor, latents: Tensor) -> Tensor:
        """Return the next state: the one after `look_ahead`, with the latents taken in."""
        return cast("Tensor", self.resnet(state + self.z_proj(latents.to(state.dtype))))


class PixelHead(nn.Module):
    """From the last state to the parameters of each pixel's mixture of logistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A pixel's parameters: ten weights, and for three colours ten means, scales and coefficients.
        self.out_conv = _convolution(width, 10 * layout.MIXTURES, 1)

    def forward(self, state: Tensor) -> Tensor:
        """Return `(B, 100, 64, 64)` float32."""
        return cast("Tensor", self.out_conv(state)).float()


class Decoder(nn.Module):
    """Top-down: 75 groups of latents, coarse to fine, to the pixels' distributions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        blocks = layout.decoder_blocks()
        sizes = sorted({block.size for block in blocks})
        self.dec_blocks = nn.ModuleList(LatentBlock(block, width, sqrt(1 / len(blocks))) for block in blocks)
        # What each resolution starts from, before the coarser one is added: learnt, the same for every picture.
        self.bias_xs = nn.ParameterList(nn.Parameter(torch.zeros(1, width, size, size)) for size in sizes)
        self.out_net = PixelHead(width)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))

    @property
    def blocks(self) -> list[LatentBlock]:
        """The 75 blocks, coarse to fine."""
        return cast("list[LatentBlock]", list(self.dec_blocks))

    def descend(self, count: int, choose: Choose, groups: int | None = None) -> Tensor:
        """Go through the groups of latents and return the last state, `(B, width, size, size)`.

        Args:
            count: B.
            choose: Gives the latents of each group.
            groups: How many groups; None for all 75.
        """
        states = {bias.shape[-1]: bias.expand(count, -1, -1, -1) for bias in self.bias_xs}
        size = 1
        for group, block in enumerate(self.blocks[:groups]):
            size, coarser = block.layout.size, block.layout.grown_from
            state = states[size]
            if coarser is not None:  # nearest neighbour
                state = state + functional.interpolate(states[coarser], scale_factor=size // coarser)
            prior, ahead = block.look_ahead(state)
            states[size] = block.absorb(ahead, choose(group, state, prior))
        return states[size]

    def posterior(self, group: int, state: Tensor, activations: Mapping[int, Tensor]) -> Gaussian:
        """Return the posterior of a group of latents, given the state that `descend` hands to `choose`."""
        block = self.blocks[group]
        return block.posterior(state, activations[block.layout.size])

    def pixels(self, state: Tensor) -> Tensor:
        """Return the parameters of the pixels' mixtures, `(B, 100, 64, 64)` float32, of the state after group 74."""
        return cast("Tensor", self.out_net(state * self.gain + self.bias))


class VeryDeepVAE(nn.Module):
    """Encoder and decoder; `width` 512 is the published model."""

    def __init__(self, width: int = layout.WIDTH) -> None:
        """Make an untrained network.

        Raises:
            ValueError: If the width is no positive multiple of four.
        """
        super().__init__()
        if width < layout.BOTTLENECK or width % layout.BOTTLENECK:
            raise ValueError(f"width must be a positive multiple of {layout.BOTTLENECK}, got {width}")
        self.encoder = Encoder(width)
        self.decoder = Decoder(width)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights: pictures are given in it."""
        return self.decoder.gain.dtype


def _convolution(before: int, after: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """Return a convolution that keeps height and width, its biases zero and its weights scaled by `gain`."""
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    with torch.no_grad():
        layer.bias.zero_()  # type: ignore[union-attr]
        layer.weight.mul_(gain)
    return layer


def _gaussian(parameters: Tensor) -> Gaussian:
    """Return the Gaussian of a block's output; in float32, because small scales vanish in half precision."""
    mean, log_scale = parameters.float().chunk(2, dim=1)
    return Gaussian(mean, log_scale)
