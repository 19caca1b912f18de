"""Bits per dimension: says whether a checkpoint was loaded right, by the number the paper publishes.

    python -m bench.generators.vdvae.rate FOLDER --weights WEIGHTS

gives minus the evidence lower bound over the pictures of a folder, resized to 64 x 64. The paper has 3.52 for
ImageNet-64 (Child 2021). Eight, the bits of an uncompressed grey level, means that the network knows nothing.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.core.errors import MissingDataError, ReconbenchError
from bench.data.sources.pictures import decode
from bench.generators._diffusion.resizing import resized
from bench.generators.base import MissingWeightsError
from bench.generators.vdvae.architecture import PICTURE_SIZE
from bench.generators.vdvae.gaussian import Gaussian, Noise
from bench.generators.vdvae.model import RESAMPLING, Vdvae, VdvaeOptions, normalised
from bench.generators.vdvae.network import VeryDeepVAE
from bench.generators.vdvae.pixels import PixelMixture

_LOG = logging.getLogger(__name__)
_BATCH = 16
_SUFFIXES = {".jpeg", ".jpg", ".png"}


@torch.no_grad()
def bits_per_dimension(network: VeryDeepVAE, pictures: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return minus the evidence lower bound of each picture, `(B,)`, in bits per colour of a pixel.

    It is the surprise at the picture given one posterior sample of all 75 groups of latents, plus the divergence of
    every posterior from its prior.

    Args:
        network: In float32, on any device.
        pictures: `(B, 3, 64, 64)` uint8 on the CPU.
        seeds: One a picture.
    """
    device = network.decoder.gain.device
    noise = Noise(seeds, device, posterior=True)
    activations = network.encoder(normalised(pictures, device))
    nats = torch.zeros(len(pictures), device=device)  # of all groups so far: the rate

    def choose(group: int, state: Tensor, prior: Gaussian) -> Tensor:
        posterior = network.decoder.posterior(group, state, activations)
        nats.add_(posterior.divergence(prior).flatten(1).sum(dim=1))
        return posterior.sample(noise.normal(prior.mean.shape[1:]))

    state = network.decoder.descend(len(pictures), choose)
    surprise = PixelMixture.of(network.decoder.pixels(state)).nats(pictures.to(device))
    return (nats + surprise.flatten(1).sum(dim=1)).cpu() / (pictures[0].numel() * math.log(2))


def pictures_in(folder: Path) -> Tensor:
    """Return the pictures of a folder, whatever their sizes, as `(N, 3, 64, 64)` uint8.

    Raises:
        MissingDataError: If there is no folder or no picture in it.
        CorruptFileError: If a file is no picture.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise MissingDataError(f"there is no PNG or JPEG picture in {folder}")
    pictures = (torch.tensor(decode(path.read_bytes(), str(path))).permute(2, 0, 1)[None] for path in paths)
    return torch.cat([resized(picture, PICTURE_SIZE, RESAMPLING) for picture in pictures])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.generators.vdvae.rate", description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of PNG or JPEG pictures")
    parser.add_argument("--weights", help="folder that holds vdvae-imagenet64/; the usual places by default")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        pictures = pictures_in(chosen.pictures)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = Vdvae(VdvaeOptions(weights=chosen.weights), device).network
    except (ReconbenchError, MissingWeightsError) as error:
        _LOG.error("%s", error)
        return 2
    parts = zip(pictures.split(_BATCH), torch.arange(len(pictures)).split(_BATCH), strict=True)
    bits = torch.cat([bits_per_dimension(network, part, seeds.tolist()) for part, seeds in parts])
    _LOG.info("%.3f bits per dimension (mean of %d pictures; published for ImageNet-64: 3.52)", bits.mean(), len(bits))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
