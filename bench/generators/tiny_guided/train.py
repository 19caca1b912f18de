"""Trains the tiny guided model on the simulator's scenes and their captions.

    python -m bench.generators.tiny_guided.train --out bench/generators/tiny_guided/weights

UNet, text encoder and image tokeniser learn together from the UNet's v-prediction loss on the latents of
tiny-diffusion's VAE, which stays as it is. The UNet starts from tiny-diffusion's, wherever layers have the same name
and shape: it can draw scenes already, and has to learn what conditions mean. Text and image tokens are dropped
separately, each from a tenth of the pictures, for classifier-free guidance (Ho & Salimans 2022). The run is determined
by `--seed`, the step count and the number of threads.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.data.simulate.scenes.sampling import captions, sample_scene, stimulus_seed
from bench.generators._networks import scene_training as training
from bench.generators._networks.scene_latents import FOLDER as PARENT
from bench.generators.tiny_guided.architecture import (
    TOKENS_SHAPE,
    ImageTokeniser,
    new_text_encoder,
    new_unet,
    new_words,
)

BATCH = 32
DROPPED = 0.1
"""Share of the pictures that lose their text, and, drawn separately, their image tokens."""
_LOG = logging.getLogger(__name__)


class Networks(nn.Module):
    """What is trained: the UNet and the two encoders of its conditions."""

    def __init__(self, words: int) -> None:
        """Build them untrained for a vocabulary, the UNet warm-started from tiny-diffusion's."""
        super().__init__()
        self.unet, self.text, self.tokens = new_unet(), new_text_encoder(words), ImageTokeniser()
        trained = load_file(PARENT / "unet" / "diffusion_pytorch_model.safetensors")
        mine = self.unet.state_dict()
        # Cross-attention layers are not in the parent and keep their random weights.
        same = {k: v.float() for k, v in trained.items() if k in mine and mine[k].shape == v.shape}
        self.unet.load_state_dict({**mine, **same})

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the predicted velocities of noisy latents `(B, 4, 16, 16)` at timesteps `(B,)`."""
        count = len(noisy)
        # All captions and the empty text in one pass through the encoder.
        ids = torch.cat([batch.captions.flatten(0, 1), batch.empty])
        states = self.text(input_ids=ids).last_hidden_state
        text = states[:-1].unflatten(0, batch.captions.shape[:2]).mean(1)
        text = torch.where(batch.texts, text, states[-1:])
        tokens = torch.where(batch.seen, self.tokens(batch.latents), torch.zeros(count, *TOKENS_SHAPE))
        given = {"image_share": batch.image_share}
        return self.unet(noisy, steps, torch.cat([text, tokens], 1), cross_attention_kwargs=given).sample


@dataclass(frozen=True)
class Batch:
    """B scenes and how their conditions are given.

    Attributes:
        latents: `(B, 4, 16, 16)`.
        captions: Word numbers of their captions `(B, 5, 32)`.
        empty: Word numbers of a text without words `(1, 32)`.
        texts: Whether each keeps its text, `(B, 1, 1)`.
        seen: Whether each keeps its image tokens, `(B, 1, 1)`.
        image_share: Share of the image tokens against the text, `(B, 1, 1)`.
    """

    latents: torch.Tensor
    captions: torch.Tensor
    empty: torch.Tensor
    texts: torch.Tensor
    seen: torch.Tensor
    image_share: torch.Tensor


def draw_batch(latents: torch.Tensor, captions: torch.Tensor, empty: torch.Tensor) -> Batch:
    """Draw which conditions are dropped, and shares: three tenths text alone, three tokens alone, the rest any."""
    shape = (len(latents), 1, 1)
    kind, share = torch.rand(shape), torch.rand(shape)
    # Alone, each condition must carry a picture: recipes may give one of them only.
    image_share = torch.where(kind < 0.3, 0.0, torch.where(kind < 0.6, 1.0, share))
    return Batch(latents, captions, empty, torch.rand(shape) >= DROPPED, torch.rand(shape) >= DROPPED, image_share)


def train(steps: int, seed: int, scenes: int, out: Path, save_every: int = 100) -> None:
    """Train all three networks and write them to `out`; usable versions are written on the way.

    Args:
        steps: Batches of 32 scenes.
        seed: Of the initial weights, the order, the noise, the timesteps and what is dropped.
        scenes: How many training scenes.
        out: Weights folder.
        save_every: Steps between two reports with a usable version.
    """
    torch.manual_seed(seed)
    sentences = [captions(sample_scene(stimulus_seed(index, training.TRAINING_DESIGN))) for index in range(scenes)]
    words = new_words(text for texts in sentences for text in texts)
    ids = torch.tensor([[e.ids for e in words.encode_batch(texts)] for texts in sentences])
    empty = torch.tensor([words.encode("").ids])
    networks, scheduler = Networks(words.get_vocab_size()), training.new_scheduler()
    average = copy.deepcopy(networks).requires_grad_(False)
    latents = training.latents(PARENT, scenes)
    order = training.batches(scenes, BATCH, steps, torch.Generator().manual_seed(seed))

    def loss_of(step: int) -> torch.Tensor:
        rows = next(order)
        return diffusion_loss(networks, scheduler, draw_batch(latents[rows], ids[rows], empty))

    for at in training.optimise(networks, steps, 1.2e-3, loss_of, save_every):
        training.follow(average, networks, min(0.997, at.step / (at.step + 19)))
        if at.due:
            _LOG.info("%s", at)
            save(average, words, out)


def diffusion_loss(networks: Networks, scheduler: Any, batch: Batch) -> torch.Tensor:  # noqa: ANN401 - diffusers
    """Return the v-prediction loss at random noise and timesteps; large ones, where conditions matter, come oftener."""
    latents = batch.latents
    noise = torch.randn_like(latents)
    steps = (scheduler.config.num_train_timesteps * torch.rand(len(latents)).sqrt()).long()
    # The fused attention's backward pass takes six times as long on a CPU as that of plain matrix products.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        predicted = networks(scheduler.add_noise(latents, noise, steps), steps, batch)
    return functional.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, steps))


def save(networks: Networks, words: Any, out: Path) -> None:  # noqa: ANN401 - a tokenizers.Tokenizer
    """Write the networks in float16, and the words, to `out`."""
    half = copy.deepcopy(networks).half()
    half.unet.save_pretrained(out / "unet", safe_serialization=True)
    half.text.save_pretrained(out / "text_encoder", safe_serialization=True)
    (out / "image_tokeniser").mkdir(parents=True, exist_ok=True)
    save_file(half.tokens.state_dict(), out / "image_tokeniser" / "model.safetensors")
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    words.save(str(out / "tokenizer" / "tokenizer.json"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training; returns the exit status."""
    options = training.parser(__doc__.split("\n")[0], Path(__file__).parent / "weights", 12_000)
    options.add_argument("--steps", type=int, default=1400, help="batches of 32 scenes")
    given = training.begin(options, argv)
    train(given.steps, given.seed, given.scenes, given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
