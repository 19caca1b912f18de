"""The very deep VAE as a generator: posterior samples of the coarse latents, and pictures from predicted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from bench.core.errors import BadDataError
from bench.generators._diffusion.resizing import resized
from bench.generators._weights import checkpoints
from bench.generators._weights.checkpoints import CheckpointOptions
from bench.generators._weights.frozen import Precision, dtype_of, frozen, module_size
from bench.generators.base import RENDER_ONLY, Generator, InputSpec, Stimuli, TargetSpec, WeightsSize
from bench.generators.vdvae.architecture import (
    PICTURE_SIZE,
    PREDICTED_GROUPS,
    PREDICTED_NUMBERS,
    predicted_shapes,
)
from bench.generators.vdvae.checkpoint import CHECKPOINT, load_network
from bench.generators.vdvae.gaussian import Gaussian, Noise
from bench.generators.vdvae.network import VeryDeepVAE
from bench.generators.vdvae.pixels import PixelMixture, to_levels

GREY_MEAN = 115.92961967
GREY_DEVIATION = 69.37404
"""Of ImageNet-64's grey levels, all colours together, as in the published code."""
RESAMPLING = Image.Resampling.BILINEAR
"""How the published script brings pictures to 64 x 64."""
_BATCH = 16  # pictures in the network at once: bounds memory, changes no picture


@dataclass(frozen=True)
class VdvaeOptions(CheckpointOptions):
    """What a recipe may set; the defaults are Brain-Diffuser's.

    Attributes:
        precision: Number format of the network; distributions are always computed in float32. Seventy-five residual
            blocks round seventy-five times, so half precision is faster but gives other samples.
        temperature: Factor of the prior's standard deviations for the 44 groups that are not predicted.
        output: Draw each pixel from its mixture of logistics, or take the mixture's mean (less grain).
    """

    precision: Precision = "float32"
    temperature: Annotated[float, Field(gt=0, le=1)] = field(default=1.0, metadata=RENDER_ONLY)
    output: Literal["sample", "mean"] = field(default="sample", metadata=RENDER_ONLY)


class Vdvae(Generator):
    """OpenAI's VDVAE, frozen: `latents` are the first 31 groups, flattened one after the other (`architecture`)."""

    version: ClassVar[int] = 2
    Options: ClassVar[type] = VdvaeOptions
    targets: ClassVar[Mapping[str, TargetSpec]] = {"latents": TargetSpec((PREDICTED_NUMBERS,))}
    inputs: ClassVar[Mapping[str, InputSpec]] = {"latents": InputSpec((PREDICTED_NUMBERS,), oracle="latents")}
    trained_on: ClassVar[tuple[str, ...] | None] = ("imagenet-64",)

    def __init__(self, options: VdvaeOptions, device: torch.device) -> None:
        """Load the published weights.

        Raises:
            MissingWeightsError: If they are not on this machine.
            CorruptFileError: If the file holds another network.
        """
        super().__init__(options, device)
        network = load_network(self.options)
        self.network: VeryDeepVAE = frozen(network, dtype_of(self.options.precision, device), device)

    @classmethod
    def weights_digest(cls, options: VdvaeOptions) -> str:
        """Return the sha256 of the checkpoint."""
        return checkpoints.weights_digest([CHECKPOINT], options)

    @classmethod
    def weights_size(cls, options: VdvaeOptions) -> WeightsSize:
        """Return the size of the checkpoint, or of the published network where weights are random."""
        if not options.untrained:
            return checkpoints.weights_size([CHECKPOINT], options)
        with torch.device("meta"):
            return module_size([VeryDeepVAE()])

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Return posterior samples `(B, 91168)` float32; stimulus i's noise comes from seed i.

        Raises:
            UnknownNameError: If a name is not a target.
            BadDataError: If numbers overflow in half precision.
        """
        self.check_targets(names)
        if not names:
            return {}
        if len(seeds) != len(stimuli.images):
            raise ValueError(f"vdvae: {len(stimuli.images)} pictures but {len(seeds)} seeds")
        parts = [self._posterior_sample(stimuli.images[part], seeds[part]) for part in _parts(len(seeds))]
        # Nothing to encode is no error: the empty tensor gives the shape.
        return {name: torch.cat([torch.zeros(0, PREDICTED_NUMBERS), *parts]) for name in names}

    def render(self, inputs: Mapping[str, Tensor], seeds: Sequence[int]) -> Tensor:
        """Make pictures from the first 31 groups of latents; the other 44 come from the prior given them.

        Args:
            inputs: `latents` `(B, 91168)`.
            seeds: One a picture: noise of groups 31 to 74 in order, then of the pixels.

        Returns:
            `(B, 3, 64, 64)` uint8 on the CPU.

        Raises:
            UnknownNameError: If there is no such input.
            ValueError: If anything but `latents` of that shape and finite values is given.
            BadDataError: If numbers overflow in half precision.
        """
        self.check_inputs(inputs, seeds)
        size = (0, 3, PICTURE_SIZE, PICTURE_SIZE)
        parts = [self._pictures(inputs["latents"][part], seeds[part]) for part in _parts(len(seeds))]
        return torch.cat([torch.zeros(size, dtype=torch.uint8), *parts])

    @torch.no_grad()
    def _posterior_sample(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the flattened samples of a few pictures, on the CPU."""
        noise, groups = Noise(seeds, self.device, posterior=True), list[Tensor]()
        pictures = normalised(resized(images, PICTURE_SIZE, RESAMPLING), self.device).to(self.network.dtype)
        activations = self.network.encoder(pictures)

        def choose(group: int, state: Tensor, prior: Gaussian) -> Tensor:
            posterior = self.network.decoder.posterior(group, state, activations)
            groups.append(posterior.sample(noise.normal(posterior.mean.shape[1:])))
            return groups[-1]

        # Finer groups do not change coarser ones: the walk ends with the last group that is wanted.
        self.network.decoder.descend(len(images), choose, PREDICTED_GROUPS)
        return self._finite(torch.cat([values.flatten(1) for values in groups], dim=1), "latents").cpu()

    @torch.no_grad()
    def _pictures(self, latents: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return a few pictures `(B, 3, 64, 64)` uint8, on the CPU."""
        noise, shapes = Noise(seeds, self.device, posterior=False), predicted_shapes()
        # One after the other in the order of the decoder, as the published script stacks them.
        flat = latents.to(self.device, torch.float32).split([prod(shape) for shape in shapes], dim=1)

        def choose(group: int, state: Tensor, prior: Gaussian) -> Tensor:
            if group < PREDICTED_GROUPS:
                return flat[group].reshape(-1, *shapes[group])
            return prior.sample(noise.normal(prior.mean.shape[1:]), self.options.temperature)

        state = self.network.decoder.descend(len(latents), choose)
        mixture = PixelMixture.of(self._finite(self.network.decoder.pixels(state), "pixels"))
        return to_levels(mixture.mean() if self.options.output == "mean" else mixture.sample(noise)).cpu()

    def _finite(self, values: Tensor, what: str) -> Tensor:
        """Return values as they came.

        Raises:
            BadDataError: If one is NaN or infinite: the network's numbers left the range of its precision.
        """
        if bool(torch.isfinite(values).all()):
            return values
        precision = self.options.precision
        raise BadDataError(f"vdvae: {what} are NaN or infinite in precision {precision!r}; try bfloat16 or float32")


def normalised(pictures: Tensor, device: torch.device) -> Tensor:
    """Return `(B, 3, 64, 64)` uint8 pictures as the network takes them, float32 on a device."""
    return (pictures.to(device, torch.float32) - GREY_MEAN) / GREY_DEVIATION


def _parts(count: int) -> list[slice]:
    """Return slices of at most `_BATCH` rows."""
    return [slice(first, first + _BATCH) for first in range(0, count, _BATCH)]
