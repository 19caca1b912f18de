"""Scoring: reconstructions and their truth in, a typed table of numbers with uncertainty out.

Shape legend: N images, S samples of an image, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import statistics
from eval.images import check_images, digest_images
from eval.metrics.base import unit_images
from eval.metrics.correlation_distance import correlation_distance
from eval.metrics.identification import two_way_identification
from eval.metrics.pixcorr import pixcorr
from eval.metrics.ssim import ssim
from eval.networks import weights as network_weights
from eval.networks.base import Network
from eval.networks.features import Extractor
from eval.protocols import base as protocols
from eval.protocols.base import MetricSpec, Protocol

Array = NDArray[np.float64]
FeatureCache = MutableMapping[tuple[str, str, str], NDArray[np.float32]]
"""Features `(N, D)` of truths, by (digest of pictures, preprocessing and weights; network; tap)."""

IMAGE_CHUNK = 32
"""Pictures resized together for pixel metrics."""


@dataclass(frozen=True)
class MetricResult:
    """One metric of one set of reconstructions.

    Attributes:
        name: The metric's name in its protocol.
        value: Mean over images; None where it was not computed.
        n: Number of images behind it.
        standard_error: Of the mean, over images; None where it is undefined.
        interval: 95 % bootstrap percentile interval over images.
        higher_is_better: Direction.
        status: "ok", or "not computed: needs ...".
    """

    name: str
    value: float | None
    n: int
    standard_error: float | None
    interval: tuple[float, float] | None
    higher_is_better: bool
    status: str = "ok"


@dataclass(frozen=True)
class Scores:
    """What `score` returns.

    Attributes:
        protocol: Name of the protocol.
        version: Its version.
        metrics: One result a metric, in the protocol's order.
        per_image: For each computed metric `(N,)` float64, samples already averaged.
        weights: For each feature network the sha256 of its weights, or "untrained:<seed>".
        samples: S.
    """

    protocol: str
    version: int
    metrics: tuple[MetricResult, ...]
    per_image: Mapping[str, Array]
    weights: Mapping[str, str]
    samples: int

    @property
    def untrained(self) -> bool:
        """Whether any network had random weights: such numbers compare with nothing."""
        return any(digest.startswith(network_weights.UNTRAINED) for digest in self.weights.values())

    def __getitem__(self, name: str) -> MetricResult:
        """Return the result of a metric by name."""
        return {metric.name: metric for metric in self.metrics}[name]

    def to_table(self) -> pa.Table:
        """Return the per-image values: a row an image, a float64 column a metric, the identity as metadata."""
        count = max((len(values) for values in self.per_image.values()), default=0)
        columns = {"image": pa.array(range(count), pa.int64())}
        columns |= {name: pa.array(values, pa.float64()) for name, values in self.per_image.items()}
        identity = {"protocol": self.protocol, "version": str(self.version), "samples": str(self.samples)}
        identity |= {f"weights.{name}": digest for name, digest in self.weights.items()}
        return pa.table(columns).replace_schema_metadata(identity)


@dataclass(frozen=True)
class _Job:
    """One call of `score`: pictures `(N, S, 3, H, W)` and truths `(N, 3, H, W)`, and where to compute."""

    reconstructions: Tensor
    truth: Tensor
    protocol: Protocol
    weights: Path | str | None
    digests: Mapping[str, str]
    device: torch.device
    batch: int
    cache: FeatureCache | None

    @property
    def samples(self) -> list[Tensor]:
        """The S sets of N pictures."""
        return list(self.reconstructions.unbind(1))


def score(
    reconstructions: Tensor,
    truth: Tensor,
    protocol: str | Protocol = "mindeye2",
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
    *,
    features: FeatureCache | None = None,
    batch: int = 16,
    seed: int = 0,
) -> Scores:
    """Score reconstructions under a protocol.

    Args:
        reconstructions: `(N, 3, H, W)` or `(N, S, 3, H, W)` for S samples an image; uint8 or floating point in [0, 1],
            any size.
        truth: `(N, 3, H, W)` in the same order; its size and type may differ.
        protocol: A protocol or the name of one.
        weights: Folder with the feature networks' state dicts, or "untrained" for seeded random ones, which marks the
            result. None is enough for protocols whose weights ship with the package.
        device: Where the networks run.
        features: Cache of truth features: looked up, and filled with what was missing.
        batch: Pictures a forward pass; changes nothing but speed and memory.
        seed: Of the bootstrap.

    Returns:
        The values with their uncertainty, and the per-image table behind them.

    Raises:
        ValueError: If pictures are not what is described here, their numbers differ, or the protocol is unknown.
        MissingWeightsError: If a weights file is not there.
        WrongWeightsError: If a weights file belongs to another network.
    """
    chosen = protocols.find(protocol) if isinstance(protocol, str) else protocol
    check_images(truth, "truth", (4,))
    check_images(reconstructions, "reconstructions", (4, 5))
    if len(reconstructions) != len(truth):
        raise ValueError(f"{len(reconstructions)} reconstructions for {len(truth)} truths: every image needs its own")
    stacked = reconstructions if reconstructions.ndim == 5 else reconstructions[:, None]
    reasons = {spec.name: _missing(spec, len(truth)) for spec in chosen.metrics}
    wanted = [spec for spec in chosen.metrics if reasons[spec.name] is None]
    networks = dict.fromkeys(spec.feature.network for spec in wanted if spec.feature)
    # All weights are looked for before anything is computed: a missing file must not cost an hour.
    digests = {network.name: network_weights.digest(network, weights) for network in networks}
    job = _Job(stacked, truth, chosen, weights, digests, torch.device(device), batch, features)
    values = {spec.name: _pixel_values(spec, job) for spec in wanted if spec.feature is None}
    for network in networks:  # one at a time in memory: CLIP alone holds 1.2 GB
        specs = [spec for spec in wanted if spec.feature and spec.feature.network == network]
        values |= _network_values(network, specs, job)
    # Computed in the order of the networks, told in the order of the protocol.
    per_image = {spec.name: values[spec.name] for spec in wanted}
    results = tuple(_result(spec, reasons[spec.name], per_image, seed) for spec in chosen.metrics)
    return Scores(chosen.name, chosen.version, results, per_image, digests, stacked.shape[1])


def _missing(spec: MetricSpec, n: int) -> str | None:
    """What a metric needs and was not given, or None."""
    lacking: list[str] = [need for need in spec.needs if need != "images"]
    if spec.kind == "identification" and n < 2:
        lacking.append("at least 2 images")
    return " and ".join(lacking) or None


def _pixel_values(spec: MetricSpec, job: _Job) -> Array:
    """`(N,)` values of a pixel metric, averaged over samples."""
    # Resized pictures take a hundred times the memory of what is left of them, so only a chunk exists at a time.
    parts = []
    for start in range(0, len(job.truth), IMAGE_CHUNK):
        rows = slice(start, start + IMAGE_CHUNK)
        truth = _resized(job.truth[rows], spec, job)
        samples = [_pixel_metric(spec, _resized(s[rows], spec, job), truth) for s in job.samples]
        parts.append(torch.stack(samples).mean(0))
    return torch.cat(parts).cpu().numpy()


def _resized(images: Tensor, spec: MetricSpec, job: _Job) -> Tensor:
    pixels = job.protocol.first(unit_images(images.to(job.device)).float())
    return spec.resize(pixels) if spec.resize else pixels


def _pixel_metric(spec: MetricSpec, reconstructions: Tensor, truth: Tensor) -> Tensor:
    if spec.formula == "pixcorr":
        return pixcorr(reconstructions, truth)
    return ssim(reconstructions, truth, columnwise=spec.formula == "ssim-columnwise")


def _network_values(network: Network, specs: list[MetricSpec], job: _Job) -> dict[str, Array]:
    """Values of all metrics of one network, which leaves memory on return."""
    module = network_weights.load(network, job.weights, job.device)
    values: dict[str, Array] = {}
    # A network may be fed at several sizes; each size is one pass over the pictures.
    for resize in dict.fromkeys(spec.feature.resize for spec in specs if spec.feature):
        group = [spec for spec in specs if spec.feature and spec.feature.resize == resize]
        extractor = Extractor(network, module, job.protocol.first, resize, job.batch)
        values |= _feature_values(extractor, group, job)
    return values


def _feature_values(extractor: Extractor, specs: list[MetricSpec], job: _Job) -> dict[str, Array]:
    taps = list(dict.fromkeys(spec.feature.tap for spec in specs if spec.feature))
    truth = _truth_features(extractor, taps, job)
    sums = {spec.name: torch.zeros(len(job.truth), dtype=torch.float64) for spec in specs}
    for sample in job.samples:  # one at a time: features of all samples would not fit in memory
        predicted = extractor(sample, taps)
        for spec in specs:
            assert spec.feature is not None
            sums[spec.name] += _feature_metric(spec, predicted[spec.feature.tap], truth[spec.feature.tap])
    return {name: (total / len(job.samples)).numpy() for name, total in sums.items()}


def _feature_metric(spec: MetricSpec, reconstructions: Tensor, truth: Tensor) -> Tensor:
    if spec.formula == "correlation-distance":
        return correlation_distance(reconstructions, truth)
    return two_way_identification(reconstructions, truth, transpose=spec.transpose, ties=spec.ties)


def _truth_features(extractor: Extractor, taps: list[str], job: _Job) -> dict[str, Tensor]:
    if job.cache is None:
        return extractor(job.truth, taps)
    network = extractor.network
    # Everything that changes a feature is in the key, so a cache may be shared between protocols and weights.
    identity = (digest_images(job.truth), extractor.first, extractor.resize, job.digests[network.name])
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    missing = [tap for tap in taps if (digest, network.name, tap) not in job.cache]
    if missing:
        for tap, computed in extractor(job.truth, missing).items():
            job.cache[digest, network.name, tap] = computed.numpy()
    # A copy: caches may hand out read-only memory maps, which torch does not take.
    return {tap: torch.from_numpy(np.array(job.cache[digest, network.name, tap])) for tap in taps}


def _result(spec: MetricSpec, reason: str | None, per_image: Mapping[str, Array], seed: int) -> MetricResult:
    if reason is not None:
        return MetricResult(spec.name, None, 0, None, None, spec.higher_is_better, f"not computed: needs {reason}")
    # The same seed for all metrics: their intervals come from the same draws of images.
    estimate = statistics.bootstrap(per_image[spec.name], seed=seed)
    error = None if np.isnan(estimate.standard_error) else estimate.standard_error
    interval = (estimate.low, estimate.high)
    return MetricResult(spec.name, estimate.value, estimate.n, error, interval, spec.higher_is_better)
