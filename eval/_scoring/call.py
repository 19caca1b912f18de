"""One call of `score`: what was given, and what every network would do again done once.

Shape legend: N images, S samples of an image, D features, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from eval._scoring.feature_store import FeatureCache
from eval.metrics.base import TOGETHER
from eval.networks._features import Places, Precision, distinct
from eval.pictures import PilResize, Resize, Step, digest_images, unit_images

EncodingModel = Callable[[Tensor], Tensor]
"""Predicts betas `(B, V)` from pictures `(B, 3, H, W)` in [0, 1]."""
MOST_BYTES = 2 << 30
"""Reconstructions after the first step are kept up to here; beyond, each network does that step again."""


@dataclass(frozen=True)
class Call:
    """One call of `score`.

    Attributes:
        reconstructions: `(N, S, 3, H, W)`.
        truth: `(N, 3, H, W)` as given.
        first: The protocol's first step, for reconstructions; None once it has been done.
        weights: Folder of weights, "untrained", or None.
        digests: Digest of the weights by network.
        device: Where to compute.
        batch: Pictures a forward pass.
        cache: Of truth features.
        latents: Predicted and true, `(N, D)`.
        betas: Measured `(N, V)` and the encoding model.
        precision: Of the networks' forward passes.
        protocol_first: The same, for truths, whom it is never done ahead: nobody needs it of a cached one.
        truth_digest: Of the truths as they were given, where there is a cache.
        places: For each sample, which of its pictures are the same.
    """

    reconstructions: Tensor
    truth: Tensor
    first: Step | None
    weights: Path | str | None
    digests: Mapping[str, str]
    device: torch.device
    batch: int
    cache: FeatureCache | None
    latents: tuple[Tensor, Tensor] | None
    betas: tuple[Tensor, EncodingModel] | None
    precision: Precision = "float32"
    protocol_first: Step | None = None
    truth_digest: str = ""
    places: tuple[Places, ...] = ()

    @property
    def samples(self) -> list[Tensor]:
        """The S sets of N pictures."""
        return list(self.reconstructions.unbind(1))


def ready(call: Call, networks: bool) -> Call:
    """Return the call with digests and equal pictures found, and the first step done if its outcome fits in memory.

    Args:
        call: As it was given.
        networks: Whether any network is to see pictures.
    """
    places = tuple(distinct(sample) for sample in call.samples) if networks else ()
    truth_digest = digest_images(call.truth) if call.cache is not None else ""
    call = replace(call, places=places, truth_digest=truth_digest, protocol_first=call.first)
    if call.first is None or _bytes_after(call, call.first) > MOST_BYTES:
        return call
    shown = _resized(call.reconstructions.flatten(0, 1), call.first, call.device)
    return replace(call, reconstructions=shown.unflatten(0, call.reconstructions.shape[:2]), first=None)


def _bytes_after(call: Call, first: Resize | PilResize) -> int:
    """Bytes of all reconstructions in float32 after the first step."""
    pictures = len(call.truth) * call.reconstructions.shape[1]
    return pictures * 3 * first.size * first.size * 4


def _resized(images: Tensor, step: Step, device: torch.device) -> Tensor:
    """Resize pictures `(N, 3, H, W)` a few at a time: the whole in float32 would be four times what was given."""
    resized = torch.empty(len(images), 3, step.size, step.size)
    for there, some in zip(resized.split(TOGETHER), images.split(TOGETHER), strict=True):
        there.copy_(step(unit_images(some.to(device)).float()))
    return resized
