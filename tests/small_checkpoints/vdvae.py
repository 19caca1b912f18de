"""The very deep VAE with 8 channels instead of 512, in OpenAI's file layout: all 75 groups of latents, true shapes."""

from pathlib import Path

import torch

from bench.generators._weights.frozen import seeded
from bench.generators.vdvae.checkpoint import CHECKPOINT
from bench.generators.vdvae.network import VeryDeepVAE

SETTINGS: dict[str, object] = {}
WIDTH = 8


def state() -> dict[str, torch.Tensor]:
    """A state dict in which nothing is zero: freshly made priors and biases would hide mistakes."""
    with seeded(3):
        network = VeryDeepVAE(WIDTH).requires_grad_(False)
        for name, values in network.named_parameters():
            if values.ndim == 1 or "prior.c4" in name or "bias" in name:
                values.add_(0.1 * torch.randn(values.shape))
        # Components as narrow as a trained network's, so that a picture shows its latents and not only its noise.
        network.decoder.out_net.out_conv.weight.mul_(0.2)
        network.decoder.out_net.out_conv.bias[10:].view(3, 3, 10)[:, 1] -= 4
    return network.state_dict()


def save(folder: Path) -> None:
    place = folder / CHECKPOINT.name
    place.mkdir(parents=True)
    torch.save(state(), place / CHECKPOINT.files[0])
