"""What was computed of truths, kept from one call of `score` to the next where the caller gave a cache."""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.networks._features import Extractor

FeatureCache = MutableMapping[tuple[str, str, str], NDArray[np.floating]]
"""By (digest of pictures and of all that was done to them; network; tap).

Features `(N, D)` in float32; under the network "pixels", what pixel metrics need (see `eval._scoring.pixels`).
"""


def digest(*entry: object) -> str:
    """Return the digest of everything that changes what is kept, so that protocols and weights may share a cache."""
    return hashlib.sha256(repr(entry).encode()).hexdigest()


def as_tensor(values: NDArray[np.floating]) -> Tensor:
    """Return what a cache holds as a tensor; a copy only of what is read-only, as memory maps are."""
    return torch.from_numpy(values if values.flags.writeable else values.copy(order="K"))


def features(
    extractor: Extractor,
    truth: Tensor,
    taps: Sequence[str],
    cache: FeatureCache | None,
    truth_digest: str,
    weights: str,
) -> dict[str, Tensor]:
    """Return features of truths: from the cache, or computed and put there.

    Args:
        extractor: How they are computed.
        truth: `(N, 3, H, W)`.
        taps: Which layers.
        cache: Where they are kept; None for nowhere.
        truth_digest: Of the truths.
        weights: Digest of the network's weights.

    Returns:
        For each tap `(N, D)` float32 on the CPU.
    """
    if cache is None:
        return extractor(truth, taps)
    name, entry = extractor.network.name, (extractor.first, extractor.resize, extractor.scale, extractor.precision)
    made = digest(truth_digest, *entry, weights)
    missing = [tap for tap in taps if (made, name, tap) not in cache]
    if missing:
        for tap, computed in extractor(truth, missing).items():
            cache[made, name, tap] = computed.numpy()
    return {tap: as_tensor(cache[made, name, tap]) for tap in taps}
