"""Train the scene network: `python -m eval.networks.scene.train SCENES.npz --out scene.safetensors`.

`SCENES.npz` holds `images` `(N, 64, 64, 3)` uint8, `attributes` `(N, A)` float32 and `attribute_names` `(A,)`. Columns
with no values but 0 and 1 are learnt as probabilities, the others as standardised quantities. Twelve thousand scenes
take about ten minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from eval.networks.scene.network import SCENE, SceneNet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        epochs: Passes over the scenes.
        batch: Scenes a step.
        rate: Peak learning rate of AdamW, warmed up and annealed to zero over all steps.
        held_out: Scenes at the end of the file that are only scored.
        seed: Of initial weights, order and augmentation.
    """

    epochs: int = 10
    batch: int = 128
    rate: float = 3e-3
    held_out: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Scenes:
    """Training data: `images` `(N, 3, 64, 64)` uint8, `attributes` `(N, A)`, which of the A are `binary`."""

    images: Tensor
    attributes: Tensor
    binary: Tensor


def read_scenes(path: Path) -> Scenes:
    """Read the training file and standardise its continuous attributes.

    Raises:
        ValueError: If an array is missing, shapes do not match, or an attribute never varies.
    """
    with np.load(path) as file:
        missing = {"images", "attributes", "attribute_names"} - set(file.files)
        if missing:
            raise ValueError(f"{path} lacks {sorted(missing)}; it holds {file.files}")
        images, attributes, names = file["images"], file["attributes"], file["attribute_names"]
    if images.shape != (len(images), 64, 64, 3) or images.dtype != np.uint8:
        raise ValueError(f"images must be (N, 64, 64, 3) uint8, got {images.shape} {images.dtype}")
    if attributes.shape != (len(images), len(names)):
        raise ValueError(f"{len(images)} images, {len(names)} names, but attributes {attributes.shape}")
    constant = attributes.std(0) == 0
    if constant.any():
        raise ValueError(f"attributes that never vary cannot be learnt: {names[constant].tolist()}")
    binary = np.isin(attributes, (0, 1)).all(0)
    scaled = np.where(binary, attributes, (attributes - attributes.mean(0)) / attributes.std(0))
    return Scenes(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(scaled).float(),
        torch.from_numpy(binary),
    )


def train(scenes: Scenes, options: Options) -> SceneNet:
    """Train a network on all scenes but the held-out ones; its held-out loss is logged after each epoch.

    Returns:
        The network in evaluation mode.
    """
    torch.manual_seed(options.seed)
    network = SceneNet(scenes.attributes.shape[1])
    generator = torch.Generator().manual_seed(options.seed)
    n = len(scenes.images) - options.held_out
    steps = options.epochs * (n // options.batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=steps, pct_start=0.15)
    for epoch in range(options.epochs):
        network.train()
        for rows in torch.randperm(n, generator=generator).split(options.batch)[: n // options.batch]:
            loss = _loss(network(_augment(scenes.images[rows], generator)), scenes.attributes[rows], scenes.binary)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        logger.info("epoch %d: training loss %.4f, %s", epoch + 1, loss.item(), held_out_report(network, scenes, n))
    _standardise_embedding(network.eval(), scenes.images[:n])
    return network


@torch.inference_mode()
def held_out_report(network: SceneNet, scenes: Scenes, start: int) -> str:
    """Score the scenes from `start` on: accuracy of binary attributes, correlation of the others."""
    network.eval()
    truth, binary = scenes.attributes[start:], scenes.binary
    guess = torch.cat([network(normalise(batch.float() / 255)) for batch in scenes.images[start:].split(256)])
    accuracy = ((guess > 0) == (truth > 0.5))[:, binary].float().mean()
    centred = [values - values.mean(0) for values in (guess[:, ~binary], truth[:, ~binary])]
    correlation = functional.cosine_similarity(centred[0], centred[1], dim=0).mean()
    return f"held out: loss {_loss(guess, truth, binary):.4f}, accuracy {accuracy:.3f}, correlation {correlation:.3f}"


@torch.inference_mode()
def _standardise_embedding(network: SceneNet, images: Tensor) -> None:
    embeddings = torch.cat([network.embed(normalise(batch.float() / 255)) for batch in images.split(256)])
    network.centre.copy_(embeddings.mean(0))
    network.spread.copy_(embeddings.std(0))


def normalise(images: Tensor) -> Tensor:
    """Normalise `(B, 3, H, W)` images in [0, 1] as the suite does."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SCENE.mean, SCENE.std))
    return (images - mean) / std


def _loss(guess: Tensor, truth: Tensor, binary: Tensor) -> Tensor:
    classes = functional.binary_cross_entropy_with_logits(guess[:, binary], truth[:, binary])
    # Squared errors of standardised values start at 1, cross-entropies of rare attributes at 0.3: level them.
    return classes + 0.3 * functional.mse_loss(guess[:, ~binary], truth[:, ~binary])


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 4 pixels, change contrast and brightness, add noise, and normalise `(B, 3, 64, 64)` images.

    No mirroring and no crops: positions are attributes too.
    """
    n, size = len(images), images.shape[-1]
    padded = functional.pad(images.float() / 255, (4, 4, 4, 4), mode="replicate")
    shifts = torch.randint(0, 9, (2,), generator=generator).tolist()  # one shift a batch: a view, not a gather
    pixels = padded[:, :, shifts[0] : shifts[0] + size, shifts[1] : shifts[1] + size]
    draws = torch.rand(3, n, 1, 1, 1, generator=generator)
    pixels = (pixels - 0.5) * (0.8 + 0.4 * draws[0]) + 0.5 + 0.2 * (draws[1] - 0.5)
    noise = 0.08 * draws[2] * torch.randn(pixels.shape, generator=generator)
    return normalise((pixels + noise).clamp(0, 1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, help="the training file")
    parser.add_argument("--out", type=Path, required=True, help="where to write the weights (float16)")
    parser.add_argument("--epochs", type=int, default=Options.epochs)
    parser.add_argument("--seed", type=int, default=Options.seed)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    network = train(read_scenes(arguments.scenes), Options(epochs=arguments.epochs, seed=arguments.seed))
    # Half the size on disk; the rounding is far below the noise of any feature.
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    save_file(state, arguments.out)
    logger.info("%s: %d bytes", arguments.out, arguments.out.stat().st_size)


if __name__ == "__main__":
    main()
