"""The tiny latent diffusion model as a generator: img2img from a predicted latent, as in BRAID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from bench.core.errors import UnknownNameError
from bench.generators._diffusion.sampler import generators_of, noise_of
from bench.generators._networks import scene_latents
from bench.generators._networks.scene_latents import LATENT_SHAPE, STARTS, LatentSpace
from bench.generators.base import RENDER_ONLY, Generator, InputSpec, Stimuli, TargetSpec, WeightsSize

WEIGHTS = replace(
    scene_latents.WEIGHTS,
    names=tuple(sorted((*scene_latents.WEIGHTS.names, "unet/config.json", "unet/diffusion_pytorch_model.safetensors"))),
)


@dataclass(frozen=True)
class TinyDiffusionOptions:
    """What a recipe may set; all of it is about rendering, none of it changes targets.

    Attributes:
        steps: DDIM steps of the whole schedule (Song et al. 2021); `steps * strength` of them are taken.
        strength: Part of the schedule that is noised and denoised again: 0 only decodes the latent, 1 keeps next to
            nothing of it.
        eta: Noise added back at each step: 0 is DDIM, 1 is DDPM.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=10, metadata=RENDER_ONLY)
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.5, metadata=RENDER_ONLY)
    eta: Annotated[float, Field(ge=0, le=1)] = field(default=0.0, metadata=RENDER_ONLY)


class TinyDiffusion(Generator):
    """A VAE and an unconditional latent diffusion UNet, trained on the simulator's scenes by `train.py` beside it.

    The picture of a latent is img2img (Meng et al. 2022): the latent is noised to `strength`, denoised with DDIM,
    decoded. Instead of a latent it takes a picture (another generator's output), which it encodes first.
    """

    version: ClassVar[int] = 2
    Options: ClassVar[type] = TinyDiffusionOptions
    targets: ClassVar[Mapping[str, TargetSpec]] = {"latent": TargetSpec(LATENT_SHAPE)}
    inputs: ClassVar[Mapping[str, InputSpec]] = STARTS
    trained_on: ClassVar[tuple[str, ...] | None] = ("simulated-scenes",)

    def __init__(self, options: TinyDiffusionOptions, device: torch.device) -> None:
        """Load the shipped weights.

        Raises:
            MissingWeightsError: If a weight file is not there.
        """
        super().__init__(options, device)
        from diffusers import UNet2DModel

        self.unet = WEIGHTS.load(UNet2DModel, "unet", device)
        self.space = LatentSpace(self.options.steps, self.options.strength, device)

    @classmethod
    def weights_digest(cls, options: TinyDiffusionOptions) -> str:
        """Return the sha256 over the weight files, names included; they are the same whatever the options."""
        return WEIGHTS.digest()

    @classmethod
    def weights_size(cls, options: TinyDiffusionOptions) -> WeightsSize:
        """Return the size of VAE and UNet; they are the same whatever the options."""
        return WEIGHTS.size()

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the scaled posterior means `(B, 4, 16, 16)`: they are no samples, so seeds change nothing.

        Raises:
            UnknownNameError: If a name is not a target.
        """
        self.check_targets(names)
        latents = self.space.encode(stimuli.images).cpu() if names else torch.empty(0)
        return dict.fromkeys(names, latents)

    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures from predicted latents, or from pictures.

        Args:
            inputs: Either `latent` `(B, 4, 16, 16)` or `image` `(B, 3, H, W)` uint8.
            seeds: One a picture.

        Returns:
            `(B, 3, 64, 64)` uint8 on the CPU.

        Raises:
            UnknownNameError: If there is no such input.
            ValueError: If not exactly one input is given, or its shape, type or values cannot be right.
        """
        with torch.no_grad():
            return self.space.decode(self._redrawn(inputs, seeds))

    def loss(
        self, inputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], seeds: Sequence[int]
    ) -> torch.Tensor:
        """Return how far denoising a predicted latent misses the true one.

        The predicted latent is noised to a timestep that rendering visits (drawn from its seed); the loss is the mean
        squared distance of the UNet's clean estimate from the true latent, which is the usual noise-prediction loss
        weighted by the noise-to-signal ratio (Ho et al. 2020), so that small timesteps do not swamp the others.

        Args:
            inputs: `latent` `(B, 4, 16, 16)`, may require gradients.
            targets: `latent` `(B, 4, 16, 16)`.
            seeds: One a latent.
        """
        latents, generators, sampler = self._start(inputs, seeds), generators_of(seeds), self.space.sampler
        visited = torch.tensor(sampler.cut.taken or sampler.timesteps[-1:])
        # One draw a generator: the timestep of a latent must not depend on its neighbours in the batch.
        picks = torch.cat([torch.randint(len(visited), (1,), generator=g) for g in generators])
        steps = visited[picks].to(self.device)
        noisy = sampler.scheduler.add_noise(latents, noise_of(generators, LATENT_SHAPE, self.device), steps)
        kept = sampler.scheduler.alphas_cumprod.to(self.device)[steps].view(-1, 1, 1, 1)
        # The UNet predicts velocity, of which this is the clean latent (Salimans & Ho 2022).
        clean = kept.sqrt() * noisy - (1 - kept).sqrt() * self.unet(noisy, steps).sample
        return functional.mse_loss(clean, targets["latent"].to(self.device))

    def trace(
        self, inputs: Mapping[str, torch.Tensor], layers: Sequence[str], steps: Sequence[int], seeds: Sequence[int]
    ) -> dict[tuple[str, int], torch.Tensor]:
        """Return the outputs of UNet modules while rendering.

        Args:
            inputs: As for `render`.
            layers: Names among `unet.named_modules()` ("mid_block", "up_blocks.1").
            steps: Denoising steps taken, from 0; with the defaults 0 to 4.
            seeds: One a picture.

        Returns:
            For each layer and step `(B, ...)` on the CPU.

        Raises:
            UnknownNameError: If the UNet has no module of a name.
            ValueError: If a step is not taken, or a module gives no tensor exactly once a step.
        """
        # Without the UNet itself, whose name is empty.
        modules = {name: module for name, module in self.unet.named_modules() if name}
        for name in layers:
            if name not in modules:
                raise UnknownNameError("layer", name, modules, "the UNet of 'tiny-diffusion'")
        count = len(self.space.sampler.cut.taken)
        if wrong := [step for step in steps if not 0 <= step < count]:
            raise ValueError(f"trace: steps {wrong} are not among the {count} denoising steps taken")
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
        hooks = [modules[name].register_forward_hook(_keep(seen[name])) for name in layers]
        try:
            with torch.no_grad():
                self._redrawn(inputs, seeds)
        finally:
            for hook in hooks:
                hook.remove()
        for name, outputs in seen.items():
            # A module used twice a step, or not at all, would be taken for another step's state.
            if len(outputs) != count:
                raise ValueError(f"trace: {name!r} gave {len(outputs)} tensors in {count} steps, not one a step")
        return {(name, step): seen[name][step] for name in layers for step in steps}

    def _start(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Return the latents that rendering starts from, checked."""
        self.check_inputs(inputs, seeds)
        self.start_among(inputs, list(STARTS))
        ((name, values),) = inputs.items()
        return self.space.start(name, values)

    def _redrawn(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Return the denoised latents of inputs."""
        return self.space.redraw(self._start(inputs, seeds), seeds, self._guess, self.options.eta)

    def _guess(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Return the velocity that the UNet predicts at a timestep."""
        return self.unet(latents, step).sample


def _keep(outputs: list[torch.Tensor]) -> Any:  # noqa: ANN401 - a forward hook
    """Return a forward hook that appends a module's output to a list."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: object) -> None:
        if isinstance(output, tuple):  # down blocks return their skip connections too
            output = output[0]
        if isinstance(output, torch.Tensor):
            outputs.append(output.detach().cpu().clone())

    return hook
