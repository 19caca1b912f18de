"""Trains the tiny latent diffusion model on the simulator's scenes.

    python -m bench.generators.tiny_diffusion.train --out bench/generators/tiny_diffusion/weights

First the VAE (L1 + MSE + gradient difference + a small KL term, as in Rombach et al. 2022 without the adversary), whose
latent is then standardised by folding a per-channel mean and standard deviation into its 1x1 convolutions; then the
UNet on the latents (v-prediction, exponential moving average of the weights). Both runs are determined by `--seed`,
the step counts and the number of threads. Training scenes come from designs that no simulated dataset uses.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.generators._networks import scene_training as training
from bench.generators.tiny_diffusion.architecture import new_unet, new_vae

VAE_BATCH = 16
UNET_BATCH = 64
KL_WEIGHT = 3e-4
_LOG = logging.getLogger(__name__)


def train_vae(steps: int, seed: int, out: Path, save_every: int = 200) -> None:
    """Train the VAE and write it to `out/vae`; rough versions are written on the way.

    Args:
        steps: Batches of 16 scenes, no scene twice.
        seed: Of the initial weights and of the posterior's samples.
        out: Weights folder.
        save_every: Steps between two reports with a rough version.
    """
    torch.manual_seed(seed)
    vae = new_vae()
    for at in training.optimise(
        vae, steps, 2e-3, lambda step: vae_loss(vae, training.pictures(step * VAE_BATCH, VAE_BATCH)), save_every
    ):
        if at.due:
            _LOG.info("vae %s  PixCorr %.4f", at, round_trip(vae))
            # Aside: a rough VAE in the real place would look like a finished one.
            vae.save_pretrained(out / "vae-rough", safe_serialization=True)
    standardise(vae, training.pictures(0, 1024))
    # Half the bytes in the repository; it is loaded in float32 again.
    vae.half().save_pretrained(out / "vae", safe_serialization=True)


def vae_loss(vae: Any, batch: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - an AutoencoderKL
    """Return the VAE's training loss of a batch `(B, 3, 64, 64)`; the networks run in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(batch).latent_dist
        again = vae.decode(posterior.sample()).sample
    # The loss in float32: sums over pixels in bfloat16 have two digits.
    again = again.float()
    loss = functional.l1_loss(again, batch) + 2 * functional.mse_loss(again, batch)
    # Gradient differences keep edges that L1 and MSE alone would blur.
    for dim in (2, 3):
        loss = loss + 0.5 * functional.l1_loss(again.diff(dim=dim), batch.diff(dim=dim))
    return loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


@torch.no_grad()
def round_trip(vae: Any, count: int = 128) -> float:  # noqa: ANN401 - see vae_loss
    """Return the PixCorr of decoded posterior means of held-out scenes with the scenes."""
    truth = training.pictures(0, count, training.HELD_OUT_DESIGN)
    again = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in truth.split(32)])
    return training.pixel_correlation(again.clamp(-1, 1), truth)


@torch.no_grad()
def standardise(vae: Any, batch: torch.Tensor) -> None:  # noqa: ANN401 - see vae_loss
    """Give each latent channel mean 0 and variance 1 over `batch` without changing a decoded picture.

    The encoder's last and the decoder's first layer are 1x1 convolutions, so the affine change folds into them.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in batch.split(32)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    n = len(mean)
    vae.quant_conv.weight[:n] /= deviation[:, None, None, None]
    vae.quant_conv.bias[:n] = (vae.quant_conv.bias[:n] - mean) / deviation
    # The second half of the channels are log variances, which scale by the square.
    vae.quant_conv.bias[n:] -= 2 * deviation.log()
    kernel = vae.post_quant_conv.weight
    vae.post_quant_conv.bias += torch.einsum("oi,i->o", kernel[:, :, 0, 0], mean)
    kernel *= deviation[None, :, None, None]


def train_unet(steps: int, seed: int, scenes: int, out: Path, save_every: int = 200) -> None:
    """Train the UNet on the latents of the VAE in `out` and write it with its schedule to `out/unet`, `out/scheduler`.

    Args:
        steps: Batches of 64 latents.
        seed: Of the initial weights, the order, the noise and the timesteps.
        scenes: How many training scenes.
        out: Weights folder, with the VAE.
        save_every: Steps between two reports with a usable version.
    """
    torch.manual_seed(seed + 1)
    scheduler, unet = training.new_scheduler(), new_unet()
    average = new_unet().requires_grad_(False)
    average.load_state_dict(unet.state_dict())
    scheduler.save_pretrained(out / "scheduler")
    latents = training.latents(out, scenes)
    _LOG.info("unet: %d latents, standard deviation %.3f", len(latents), float(latents.std()))
    order = training.batches(len(latents), UNET_BATCH, steps, torch.Generator().manual_seed(seed))
    for at in training.optimise(
        unet, steps, 1.5e-3, lambda _: diffusion_loss(unet, scheduler, latents[next(order)]), save_every
    ):
        # A young average forgets faster, or it would keep the random weights it started from.
        training.follow(average, unet, min(0.998, at.step / (at.step + 19)))
        if at.due:
            _LOG.info("unet %s", at)
            half = new_unet().half()
            half.load_state_dict(average.state_dict())
            half.save_pretrained(out / "unet", safe_serialization=True)


def diffusion_loss(unet: Any, scheduler: Any, latents: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - diffusers
    """Return the v-prediction loss of latents `(B, 4, 16, 16)` at random timesteps and noise."""
    noise = torch.randn_like(latents)
    steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(scheduler.add_noise(latents, noise, steps), steps).sample
    return functional.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, steps))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training; returns the exit status."""
    options = training.parser(__doc__.split("\n")[0], Path(__file__).parent / "weights", 16_000)
    options.add_argument("--stage", choices=("all", "vae", "unet"), default="all", help="what to train")
    options.add_argument("--vae-steps", type=int, default=3200, help="batches of 16 scenes")
    options.add_argument("--unet-steps", type=int, default=3000, help="batches of 64 latents")
    given = training.begin(options, argv)
    if given.stage != "unet":
        train_vae(given.vae_steps, given.seed, given.out)
    if given.stage != "vae":
        train_unet(given.unet_steps, given.seed, given.scenes, given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
