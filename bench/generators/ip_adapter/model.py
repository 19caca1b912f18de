"""IP-Adapter-Plus as a generator: image tokens from brain activity instead of from a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from bench.generators._diffusion.sampler import Conditions, generators_of, guided
from bench.generators._diffusion.vae import pictures_of
from bench.generators._networks.published import TEXT_TOKENS, TEXT_WIDTH
from bench.generators._networks.stable_diffusion import (
    CHECKPOINTS,
    LATENT_SHAPE,
    DrawingOptions,
    build_parts,
    networks,
)
from bench.generators._weights.checkpoints import find, weights_digest, weights_size
from bench.generators._weights.frozen import module_size
from bench.generators.base import RENDER_ONLY, Generator, InputSpec, Stimuli, TargetSpec, WeightsSize
from bench.generators.ip_adapter import adapter
from bench.generators.ip_adapter.adapter import CHECKPOINT, DIM, IMAGE_SIZE, TOKENS, build_encoder, shapes
from eval.pictures import CLIP_MEAN, CLIP_STD

TOKENS_SHAPE = (TOKENS, TEXT_WIDTH)
_ENCODE_BATCH = 8


@dataclass(frozen=True)
class IpAdapterOptions(DrawingOptions):
    """What a recipe may set; the defaults are those of the published adapter's examples.

    Attributes:
        scale: Weight of the image attention beside that of the text.
        prompt: Text where no `text` is given.
        negative_prompt: Text that guidance steers away from.
    """

    scale: Annotated[float, Field(ge=0, le=2)] = field(default=1.0, metadata=RENDER_ONLY)
    prompt: str = field(default="", metadata=RENDER_ONLY)
    negative_prompt: str = field(default="", metadata=RENDER_ONLY)


class IpAdapter(Generator):
    """Stable Diffusion v1.5 with IP-Adapter-Plus (Ye et al. 2023), frozen.

    The target is what the resampler makes of CLIP ViT-H/14's last but one hidden states: 16 tokens, which the UNet
    attends to beside the text. Predicted tokens take their place; guidance steers away from the tokens of a picture of
    zeros.
    """

    version: ClassVar[int] = 1
    Options: ClassVar[type] = IpAdapterOptions
    targets: ClassVar[Mapping[str, TargetSpec]] = {"tokens": TargetSpec(TOKENS_SHAPE)}
    inputs: ClassVar[Mapping[str, InputSpec]] = {
        "tokens": InputSpec(TOKENS_SHAPE, oracle="tokens"),
        "text": InputSpec((TEXT_TOKENS, TEXT_WIDTH), required=False),
    }
    trained_on: ClassVar[tuple[str, ...] | None] = (
        "laion-2b-en",
        "laion-aesthetics",
        "coyo-700m",
        "open-images",
        "openai-wit",
    )

    def __init__(self, options: IpAdapterOptions, device: torch.device) -> None:
        """Load the networks.

        Raises:
            MissingWeightsError: If they are not on this machine and `untrained` is not asked for.
            CorruptFileError: If a file cannot be read or is another model's.
        """
        super().__init__(options, device)
        found = None if options.untrained else find(CHECKPOINT, options)  # before gigabytes are read
        self.networks = networks(options, device)
        self.adapter = (
            adapter.load(found, self.networks, options.scale)
            if found
            else adapter.untrained(self.networks, options.scale)
        )
        with torch.no_grad():
            # Zeros after normalisation, as published: the mean colour of CLIP's training pictures, not black.
            zeros = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
            self.null: Conditions = {
                "text": self.networks.text_states([options.negative_prompt]),
                "tokens": self.adapter.tokens(zeros)[:, None],
            }
            self.prompt = self.networks.text_states([options.prompt])

    @classmethod
    def weights_digest(cls, options: IpAdapterOptions) -> str:
        """Return the sha256 over all files used, or `untrained:<seed>`."""
        return weights_digest([CHECKPOINTS[options.model], CHECKPOINT], options)

    @classmethod
    def weights_size(cls, options: IpAdapterOptions) -> WeightsSize:
        """Return the size of Stable Diffusion, image encoder and adapter."""
        if not options.untrained:
            return weights_size([CHECKPOINTS[options.model], CHECKPOINT], options)
        with torch.device("meta"):
            vae, unet, text = build_parts()
            encoder = build_encoder()
        # The adapter's own weights have no module before they are joined to a UNet: counted from their shapes.
        size = module_size([vae, unet, text, encoder])
        expected = shapes(unet, encoder.config.hidden_size, DIM)
        numbers = sum(int(np.prod(shape)) for names in expected.values() for shape in names.values())
        return WeightsSize(size.parameters + numbers, size.bytes + 4 * numbers)

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return image tokens `(B, 16, 768)`; they are no samples, so seeds change nothing.

        Raises:
            UnknownNameError: If a name is not a target.
        """
        self.check_targets(names)
        with torch.no_grad():
            return {
                name: torch.cat(
                    [self.adapter.tokens(clip_pixels(part)).cpu() for part in stimuli.images.split(_ENCODE_BATCH)]
                )
                for name in names
            }

    @torch.no_grad()
    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures of 512 px from noise.

        Args:
            inputs: `tokens` `(B, 16, 768)`, and `text` `(B, 77, 768)` (none is the option `prompt`).
            seeds: One a picture.

        Returns:
            `(B, 3, 512, 512)` uint8 on the CPU.

        Raises:
            UnknownNameError: If there is no such input.
            ValueError: If tokens are missing, or shapes, types, numbers or values cannot be right.
        """
        self.check_inputs(inputs, seeds)
        count = len(seeds)
        given = {
            "text": inputs["text"].float().to(self.device) if "text" in inputs else self.prompt.expand(count, -1, -1),
            "tokens": inputs["tokens"][:, None].float().to(self.device),
        }
        null = {name: states.expand(count, *states.shape[1:]) for name, states in self.null.items()}
        guess = guided(self.networks.guess, null, given, self.options.guidance)
        sampler = self.networks.sampler(self.options)
        latents = sampler.draw(LATENT_SHAPE, generators_of(seeds), guess, self.device)
        return pictures_of(self.networks.vae, latents, 1)


def clip_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return images `(B, 3, H, W)` uint8 as CLIP takes them: shorter side 224 px, middle square, normalised.

    Resized by Pillow, bicubic, as in CLIP's own preprocessing (Radford et al. 2021).
    """
    mean, std = (np.array(values, dtype=np.float32) for values in (CLIP_MEAN, CLIP_STD))
    squares = []
    for image in images.permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(np.ascontiguousarray(image))
        factor = IMAGE_SIZE / min(picture.size)
        # `int` cuts off as CLIP's resizing does; `max` where a float falls just below 224.
        width, height = (max(IMAGE_SIZE, int(side * factor)) for side in picture.size)
        left, top = (width - IMAGE_SIZE) // 2, (height - IMAGE_SIZE) // 2
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        square = np.asarray(picture.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)), dtype=np.float32)
        squares.append(torch.from_numpy(((square / 255 - mean) / std).transpose(2, 0, 1)))
    return torch.stack(squares) if squares else torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE)
