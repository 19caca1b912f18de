"""The distribution of a pixel: a mixture of ten logistics over colours in [-1, 1] (Salimans et al. 2017, PixelCNN++).

A component has a mean and a scale for red, green and blue. Within a component green depends on red, and blue on red and
green, through coefficients in (-1, 1): mean of green + c0 * red, mean of blue + c1 * red + c2 * green.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.generators.vdvae.architecture import MIXTURES
from bench.generators.vdvae.gaussian import Noise

SMALLEST_LOG_SCALE = -7.0


@dataclass(frozen=True)
class PixelMixture:
    """The distributions of all pixels of B pictures.

    Attributes:
        logits: `(B, 10, H, W)` unnormalised logarithms of the components' weights.
        means: `(B, 3, 10, H, W)`.
        log_scales: Of the same shape, at least -7.
        coefficients: Of the same shape; the published order: green on red, blue on red, blue on green.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> PixelMixture:
        """Return the mixtures that `(B, 100, H, W)` outputs of the network stand for.

        The first ten channels are the weights; then come, for red, green and blue in turn, ten means, ten scales and
        ten coefficients.
        """
        batch, _, height, width = parameters.shape
        logits, rest = parameters[:, :MIXTURES], parameters[:, MIXTURES:]
        means, log_scales, raw = rest.reshape(batch, 3, 3, MIXTURES, height, width).unbind(dim=2)
        return cls(logits, means, log_scales.clamp(min=SMALLEST_LOG_SCALE), torch.tanh(raw))

    def sample(self, noise: Noise) -> Tensor:
        """Return pictures `(B, 3, H, W)` in [-1, 1], drawn as the published code draws them.

        A component is drawn for each pixel (Gumbel-max), then red, green and blue in turn, each clipped before the
        next one depends on it.
        """
        shape = self.logits.shape[1:]
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        gumbel = -torch.log(-torch.log(noise.uniform(shape)))
        chosen = (self.logits + gumbel).argmax(dim=1)[:, None, None]
        means, log_scales, coefficients = (
            values.gather(2, chosen.expand(-1, 3, -1, -1, -1)).squeeze(2)
            for values in (self.means, self.log_scales, self.coefficients)
        )
        drawn = noise.uniform((3, *shape[1:]))
        colours = means + torch.exp(log_scales) * (torch.log(drawn) - torch.log1p(-drawn))
        red = colours[:, 0].clamp(-1, 1)
        green = (colours[:, 1] + coefficients[:, 0] * red).clamp(-1, 1)
        blue = (colours[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green).clamp(-1, 1)
        return torch.stack([red, green, blue], dim=1)

    def mean(self) -> Tensor:
        """Return the expected colours `(B, 3, H, W)`, clipped to [-1, 1].

        Exact for the mixture without clipping: a logistic's mean is its location, and dependence is linear.
        """
        red = self.means[:, 0]
        green = self.means[:, 1] + self.coefficients[:, 0] * red
        blue = self.means[:, 2] + self.coefficients[:, 1] * red + self.coefficients[:, 2] * green
        weights = torch.softmax(self.logits, dim=1)
        return (torch.stack([red, green, blue], dim=1) * weights[:, None]).sum(dim=2).clamp(-1, 1)

    def nats(self, pictures: Tensor) -> Tensor:
        """Return minus the log-probability of each pixel's colour, `(B, H, W)`.

        Args:
            pictures: `(B, 3, H, W)` uint8. Grey level v stands for the interval of width 2 / 255 around
                v / 127.5 - 1; the outermost two reach to infinity.
        """
        levels = pictures[:, :, None].to(self.means.dtype)
        colours = levels / 127.5 - 1
        red, green, _ = colours.unbind(dim=1)
        c_red, c_blue, c_both = self.coefficients.unbind(dim=1)
        shift = torch.stack([torch.zeros_like(c_red), c_red * red, c_blue * red + c_both * green], dim=1)
        centred, narrow = colours - self.means - shift, torch.exp(-self.log_scales)
        above, below = narrow * (centred + 1 / 255), narrow * (centred - 1 / 255)
        inside = torch.sigmoid(above) - torch.sigmoid(below)
        # Where the interval's mass underflows, its width times the density in its middle, as published.
        middle = narrow * centred
        thin = middle - self.log_scales - 2 * functional.softplus(middle) - math.log(127.5)
        log_inside = torch.where(inside > 1e-5, torch.log(inside.clamp(min=1e-12)), thin)
        # Levels 0 and 255 hold all that clipping puts there.
        edged = torch.where(levels == 0, functional.logsigmoid(above), log_inside)
        edged = torch.where(levels == 255, functional.logsigmoid(-below), edged)
        weighted = edged.sum(dim=1) + functional.log_softmax(self.logits, dim=1)
        return -torch.logsumexp(weighted, dim=1)


def to_levels(colours: Tensor) -> Tensor:
    """Return colours in [-1, 1] as uint8 grey levels: `(c + 1) * 127.5`, cut to an integer as published."""
    return ((colours + 1) * 127.5).clamp(0, 255).to(torch.uint8)
