"""The tiny guided model as a generator: pictures from caption tokens and image tokens, from noise or by img2img."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from bench.generators._diffusion.sampler import Conditions, Guess, guided
from bench.generators._networks import scene_latents
from bench.generators._networks.clip import mean_over_captions
from bench.generators._networks.scene_latents import LATENT_SHAPE, STARTS, LatentSpace
from bench.generators._weights.frozen import seeded
from bench.generators._weights.shipped_files import WeightFiles
from bench.generators.base import RENDER_ONLY, Generator, InputSpec, Stimuli, TargetSpec, WeightsSize
from bench.generators.tiny_guided.architecture import TEXT_SHAPE, TOKENS_SHAPE, ImageTokeniser, with_mixed_attention

WEIGHTS = WeightFiles(
    "tiny-guided",
    Path(__file__).parent / "weights",
    (
        "image_tokeniser/model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ),
)
"""The files of this model alone: its VAE is tiny-diffusion's."""
CONDITIONS = {
    "text": InputSpec(TEXT_SHAPE, oracle="text", required=False),
    "tokens": InputSpec(TOKENS_SHAPE, oracle="tokens", required=False),
}


@dataclass(frozen=True)
class TinyGuidedOptions:
    """What a recipe may set; all of it is about rendering, none of it changes targets.

    Attributes:
        steps: DDIM steps of the whole schedule (Song et al. 2021).
        strength: Part of the schedule that a start (`latent` or `image`) is noised and denoised again; without a start
            all steps are taken, from pure noise.
        guidance: Scale of classifier-free guidance (Ho & Salimans 2022): 1 is none, 0 ignores text and tokens.
        mixing: Share of the text against the image tokens, as Brain-Diffuser's: 0 is image tokens alone, 1 text alone
            (Versatile Diffusion's mixed ratio is the rest). It counts where both are given; one alone has all of it.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = field(default=8, metadata=RENDER_ONLY)
    strength: Annotated[float, Field(ge=0, le=1)] = field(default=0.8, metadata=RENDER_ONLY)
    guidance: Annotated[float, Field(ge=0, le=50)] = field(default=2.0, metadata=RENDER_ONLY)
    mixing: Annotated[float, Field(ge=0, le=1)] = field(default=0.4, metadata=RENDER_ONLY)


class TinyGuided(Generator):
    """A latent diffusion UNet that text and image tokens guide, trained on the simulator's scenes by `train.py`.

    It has tiny-diffusion's VAE and thus its latents. Text tokens are the last hidden states of a small CLIP text
    encoder, averaged over a stimulus's captions (Takagi & Nishimoto 2023; Ozcelik & VanRullen 2023). Image tokens come
    from a resampler as IP-Adapter-Plus has it (Ye et al. 2023). A condition that is not given is its null value: the
    encoding of a text without words, tokens of zeros.
    """

    version: ClassVar[int] = 1
    Options: ClassVar[type] = TinyGuidedOptions
    targets: ClassVar[Mapping[str, TargetSpec]] = {
        "latent": TargetSpec(LATENT_SHAPE),
        "text": TargetSpec(TEXT_SHAPE, needs=("captions",)),
        "tokens": TargetSpec(TOKENS_SHAPE),
    }
    inputs: ClassVar[Mapping[str, InputSpec]] = {**STARTS, **CONDITIONS}
    trained_on: ClassVar[tuple[str, ...] | None] = ("simulated-scenes",)

    def __init__(self, options: TinyGuidedOptions, device: torch.device) -> None:
        """Load the shipped weights.

        Raises:
            MissingWeightsError: If a weight file is not there.
        """
        super().__init__(options, device)
        from diffusers import UNet2DConditionModel
        from tokenizers import Tokenizer
        from transformers import CLIPTextModel

        self.space = LatentSpace(self.options.steps, self.options.strength, device)
        self.text_encoder = WEIGHTS.load(CLIPTextModel, "text_encoder", device)
        with seeded():  # the random weights that are replaced at once; the draws of others go on as they were
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(WEIGHTS.folder / "unet"))
            unet, tokeniser = with_mixed_attention(unet), ImageTokeniser()
        # Not by diffusers' own loader, which does not know the maps of `MixedAttention`.
        self.unet = WEIGHTS.fill(unet, "unet/diffusion_pytorch_model.safetensors", device)
        self.words = Tokenizer.from_file(str(WEIGHTS.folder / "tokenizer/tokenizer.json"))
        self.tokeniser = WEIGHTS.fill(tokeniser, "image_tokeniser/model.safetensors", device)
        self.nulls = {"text": self._text([[""]]), "tokens": torch.zeros(1, *TOKENS_SHAPE, device=device)}

    @classmethod
    def weights_digest(cls, options: TinyGuidedOptions) -> str:
        """Return the sha256 of tiny-diffusion's VAE files and this model's own, whatever the options."""
        total = hashlib.sha256()
        # Latents and pictures depend on the other generator's VAE as much as on its own files.
        for files in (scene_latents.WEIGHTS, WEIGHTS):
            total.update(bytes.fromhex(files.digest()))
        return total.hexdigest()

    @classmethod
    def weights_size(cls, options: TinyGuidedOptions) -> WeightsSize:
        """Return the size of all networks, tiny-diffusion's VAE among them, whatever the options."""
        vae, own = scene_latents.WEIGHTS.size(), WEIGHTS.size()
        return WeightsSize(vae.parameters + own.parameters, vae.bytes + own.bytes)

    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return latents, text tokens and image tokens: none is a sample, so seeds change nothing.

        Raises:
            UnknownNameError: If a name is not a target.
            BadDataError: If text is asked for and a stimulus has no caption.
        """
        self.check_targets(names)
        found: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            if {"latent", "tokens"} & set(names):
                # Tokens are made from the latent, so both need one pass of the VAE.
                found["latent"] = self.space.encode(stimuli.images)
            if "tokens" in names:
                found["tokens"] = self.tokeniser(found["latent"])
            if "text" in names:
                found["text"] = self._text(stimuli.captions)
        return {name: found[name].cpu() for name in names}

    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures from what is given: a start, conditions, or both.

        Args:
            inputs: At most one start, `latent` `(B, 4, 16, 16)` or `image` `(B, 3, H, W)` uint8; and conditions, `text`
                `(B, 32, 64)` and `tokens` `(B, 8, 64)`.
            seeds: One a picture.

        Returns:
            `(B, 3, 64, 64)` uint8 on the CPU.

        Raises:
            UnknownNameError: If there is no such input.
            ValueError: If nothing or both starts are given, or a shape, type or value cannot be right.
        """
        self.check_inputs(inputs, seeds)
        start = self.start_among(inputs, list(STARTS))
        with torch.no_grad():
            guess = self._guided(inputs, len(seeds))
            if start is None:
                return self.space.decode(self.space.draw(seeds, guess))
            return self.space.decode(self.space.redraw(self.space.start(start, inputs[start]), seeds, guess))

    @torch.no_grad()
    def _text(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return text tokens `(B, 32, 64)`, each the mean over a stimulus's captions."""
        self.check_captions(captions)
        return mean_over_captions(self._text_states, captions)

    def _text_states(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the last hidden states `(N, 32, 64)` of texts."""
        ids = torch.tensor([each.ids for each in self.words.encode_batch(list(texts))], device=self.device)
        states: torch.Tensor = self.text_encoder(input_ids=ids).last_hidden_state
        return states

    def _guided(self, inputs: Mapping[str, torch.Tensor], count: int) -> Guess:
        """Return the network that the conditions guide; one that is not given is its null value."""
        null = {name: self.nulls[name].expand(count, -1, -1) for name in CONDITIONS}
        given = {name: inputs[name].float().to(self.device) if name in inputs else null[name] for name in CONDITIONS}
        share = self._image_share(inputs)

        def guess(latents: torch.Tensor, step: int, states: Conditions) -> torch.Tensor:
            shares = torch.full((len(latents), 1, 1), share, device=self.device)
            both = torch.cat([states["text"], states["tokens"]], dim=1)
            made: torch.Tensor = self.unet(latents, step, both, cross_attention_kwargs={"image_share": shares}).sample
            return made

        # With nothing to guide by, one pass is enough.
        return guided(guess, null, given, self.options.guidance if CONDITIONS.keys() & inputs else 0.0)

    def _image_share(self, inputs: Mapping[str, torch.Tensor]) -> float:
        """Return the share of the image tokens: the option's, or all of it for a condition that comes alone."""
        if ("text" in inputs) == ("tokens" in inputs):
            return 1.0 - float(self.options.mixing)
        return float("tokens" in inputs)
