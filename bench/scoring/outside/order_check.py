"""Finds pictures that are not in the order they were said to be in.

The best assignment of pictures to true images by pixel correlation (Kuhn 1955) always correlates better than the given
order, so it proves nothing alone. The order is doubted only if a second feature, which had no part in the assignment,
agrees with it beyond chance in two ways: better than with the given order, and better than with an assignment to the
mirrored true images, which no picture was ever made for. The second keeps systems at chance from being accused: their
pictures find look-alikes too, but no better ones than among mirrored images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from eval.networks import _weights as network_weights
from eval.networks._features import Extractor
from eval.networks.base import Network
from eval.networks.torchvision import ALEXNET
from eval.pictures import Resize, unit_images
from eval.protocols.base import Protocol

FEWEST = 10
"""Pictures below which nothing can be said."""
LEVEL = 0.99
PERMUTATIONS = 1999
_SMALL = Resize(24, antialias=True)

Features = Callable[[Tensor], Tensor]
"""From `(N, 3, H, W)` uint8 pictures to `(N, D)` features."""


@dataclass(frozen=True)
class Judge:
    """The second feature: its name, and how it is computed."""

    name: str
    features: Features


@dataclass(frozen=True)
class OrderFinding:
    """What the check found.

    Attributes:
        suspicious: Whether the pictures fit another order of the true images, confirmed by the second feature.
        best: For each picture the place of the true image that fits it best.
        pixcorr: Mean pixel correlation in the given order and after the best assignment.
        feature: Mean correlation of the second feature, likewise.
        judge: Name of the second feature.
        rise: Rise of the second feature, and the 99 % quantile of its null distribution.
        lead: Its lead over the assignment to mirrored images, and that quantile.
    """

    suspicious: bool
    best: tuple[int, ...]
    pixcorr: tuple[float, float]
    feature: tuple[float, float]
    judge: str
    rise: tuple[float, float]
    lead: tuple[float, float]

    @property
    def moved(self) -> int:
        """How many pictures fit another true image best."""
        return sum(place != best for place, best in enumerate(self.best))

    def __str__(self) -> str:
        verdict = "the order looks wrong" if self.suspicious else "nothing speaks against the order"
        return (
            f"{verdict}: {self.moved} of {len(self.best)} pictures fit another true image best; PixCorr at 24 px "
            f"{self.pixcorr[0]:.3f} as given, {self.pixcorr[1]:.3f} reordered; {self.judge} {self.feature[0]:.3f} as "
            f"given, {self.feature[1]:.3f} reordered (99 % of chance: a rise below {self.rise[1]:.3f})"
        )


def judge_for(protocol: Protocol, weights: str | None) -> Judge | None:
    """Return the second feature: AlexNet's where its weights are there, else that of the protocol's first network.

    Returns:
        None where the networks are untrained or the protocol has none: random features confirm nothing.

    Raises:
        MissingWeightsError: If the protocol's own weights are not there.
    """
    if weights == network_weights.UNTRAINED:
        return None
    try:
        network_weights.locate(ALEXNET, weights)
        size = Resize(256, antialias=True)
        extractor = _lazily(ALEXNET, weights, lambda module: Extractor(ALEXNET, module, size, size, 16))
        return Judge("AlexNet features.11", _tapped(extractor, "features.11"))
    except network_weights.MissingWeightsError:
        feature = next((metric.feature for metric in protocol.metrics if metric.feature), None)
    if feature is None:
        return None
    network, first, resize = feature.network, protocol.first, feature.resize
    extractor = _lazily(network, weights, lambda module: Extractor(network, module, first, resize, 16))
    return Judge(f"{network.name} {network.taps[-1]}", _tapped(extractor, network.taps[-1]))


def _lazily(network: Network, weights: str | None, make: Callable[[nn.Module], Extractor]) -> Callable[[], Extractor]:
    """Return a function that loads the network at its first call only."""
    return functools.cache(lambda: make(network_weights.load(network, weights, torch.device("cpu"))))


def _tapped(extractor: Callable[[], Extractor], tap: str) -> Features:
    """Return a function from pictures to the features of one tap."""
    return lambda pictures: extractor()(pictures, [tap])[tap]


def check_order(pictures: Tensor, truth: Tensor, judge: Judge, seed: int = 0) -> OrderFinding:
    """Check whether pictures stand in the order of their true images.

    Args:
        pictures: `(N, 3, H, W)` uint8, N at least `FEWEST`.
        truth: `(N, 3, H, W)` uint8; another size is allowed.
        judge: The second feature.
        seed: Of the null distributions.

    Raises:
        ValueError: If there are too few pictures or the numbers differ.
    """
    n = len(pictures)
    if n < FEWEST or len(truth) != n:
        raise ValueError(f"{n} pictures of {len(truth)} true images: at least {FEWEST} of as many are needed")
    mirrored = truth.flip(-1)
    pixels, best = _assigned(pictures, truth)
    _, decoy = _assigned(pictures, mirrored)
    shown = _unit(judge.features(pictures))
    second = shown @ _unit(judge.features(truth)).T
    here = np.arange(n)
    matched = second[here, best].numpy()
    given = second.diagonal().numpy()
    looked = (shown * _unit(judge.features(mirrored))[decoy]).sum(1).numpy()
    rise, lead = _against_null(matched - given, seed), _against_null(matched - looked, seed + 1)
    return OrderFinding(
        suspicious=rise[0] > rise[1] and lead[0] > lead[1],
        best=tuple(int(place) for place in best),
        pixcorr=(float(pixels.diagonal().mean()), float(pixels[here, best].mean())),
        feature=(float(given.mean()), float(matched.mean())),
        judge=judge.name,
        rise=rise,
        lead=lead,
    )


def _assigned(pictures: Tensor, truth: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel correlations `(N, N)` of small copies, and the column assigned to each row."""
    small = [_unit(_SMALL(unit_images(images).float()).flatten(1)) for images in (pictures, truth)]
    correlation = (small[0] @ small[1].T).numpy()
    return correlation, linear_sum_assignment(correlation, maximize=True)[1]


def _unit(features: Tensor) -> Tensor:
    """Return rows with mean 0 and length 1, so that their products are correlations; constant rows become 0."""
    centred = features - features.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _against_null(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the mean of paired differences `(N,)` and the 99 % quantile of means under exchanged pairs.

    Exchanging both sides of a pair at random changes nothing in distribution where neither side is better.
    """
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(PERMUTATIONS, len(differences)))
    null = np.append(signs @ differences / len(differences), differences.mean())
    return float(differences.mean()), float(np.quantile(null, LEVEL))
