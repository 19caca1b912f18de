"""From pictures to per-image values: one network in memory at a time, no more features than a formula has to see.

Shape legend: N images, S samples of an image, D features, V voxels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval._scoring.job import EncodingModel, Job, as_tensor, prepared
from eval._scoring.pixels import pixel_values, slices
from eval.metrics._base import unit_images
from eval.metrics._samples import SampleValues, combine
from eval.networks import _weights as network_weights
from eval.networks._features import Extractor
from eval.networks.base import Network
from eval.pictures import Step
from eval.protocols.base import Feature, MetricSpec

Array = NDArray[np.float64]


def compute(specs: Sequence[MetricSpec], job: Job) -> dict[str, Array]:
    """Compute metrics whose inputs are all there.

    Args:
        specs: The metrics.
        job: Pictures and where to compute.

    Returns:
        For each metric, in the given order, `(N,)` float64 with samples combined by its rule.

    Raises:
        ValueError: If a network or the encoding model gives something unusable.
        MissingWeightsError: If a weights file is not there.
        WrongWeightsError: If a weights file belongs to another network.
    """
    networkless = [spec for spec in specs if spec.feature is None]
    values = {
        spec.name: _SUPPLIED[spec.computed_by.reads](spec, job)
        for spec in networkless
        if spec.computed_by.reads in _SUPPLIED
    }
    job = prepared(job, networks=len(networkless) < len(specs))
    values |= pixel_values([spec for spec in networkless if spec.computed_by.reads not in _SUPPLIED], job)
    for network in dict.fromkeys(spec.feature.network for spec in specs if spec.feature):
        # One at a time in memory: CLIP alone holds 1.2 GB.
        values |= _network_values(network, [s for s in specs if s.feature and s.feature.network == network], job)
    # Computed in the order of the networks, told in the order of the protocol.
    return {spec.name: values[spec.name].double().cpu().numpy() for spec in specs}


def _latent_values(spec: MetricSpec, job: Job) -> Tensor:
    assert job.latents is not None
    return spec.reads_out.conclude(spec.computed_by.compare(*(side.to(job.device) for side in job.latents)))


def _beta_values(spec: MetricSpec, job: Job) -> Tensor:
    assert job.betas is not None
    measured, encode = job.betas
    predicted = [_encoded(sample, encode, measured, job) for sample in job.samples]
    values = torch.stack([spec.computed_by.compare(each, measured.flatten(1)) for each in predicted])
    return combine(values, spec.samples, spec.higher_is_better)


def _encoded(images: Tensor, encode: EncodingModel, measured: Tensor, job: Job) -> Tensor:
    """Predicted betas `(N, V)` of one sample of all images."""
    parts = []
    for rows in slices(len(images), job.batch):
        with torch.inference_mode():
            betas = encode(unit_images(images[rows].to(job.device)).float()).float().cpu()
        expected = tuple(measured[rows].flatten(1).shape)
        if tuple(betas.shape) != expected:
            raise ValueError(f"the encoding model gave betas {tuple(betas.shape)}, the test betas are {expected}")
        parts.append(betas)
    return torch.cat(parts)


_SUPPLIED: Mapping[str, Callable[[MetricSpec, Job], Tensor]] = {"latents": _latent_values, "betas": _beta_values}
"""How metrics are computed that read what the caller supplied beside pictures."""


def _network_values(network: Network, specs: list[MetricSpec], job: Job) -> dict[str, Tensor]:
    """Values of all metrics of one network, which leaves memory on return."""
    module = network_weights.load(network, job.weights, job.device)
    values: dict[str, Tensor] = {}
    # A network may be fed at several sizes; each size is one pass over the pictures.
    for entry in dict.fromkeys(_entry(_feature(spec)) for spec in specs):
        group = [spec for spec in specs if _entry(_feature(spec)) == entry]
        extractor = Extractor(network, module, job.first, entry[0], job.batch, entry[1], job.precision)
        values |= _feature_values(extractor, [s for s in group if s.computed_by.reads == "features"], job)
        for spec in group:
            if spec.computed_by.reads == "paired features":
                values[spec.name] = _paired_values(extractor, spec, job)
    return values


def _feature(spec: MetricSpec) -> Feature:
    assert spec.feature is not None
    return spec.feature


def _entry(feature: Feature) -> tuple[Step | None, float]:
    """How pictures enter the network."""
    return feature.resize, feature.scale


def _feature_values(extractor: Extractor, specs: list[MetricSpec], job: Job) -> dict[str, Tensor]:
    taps = list(dict.fromkeys(_feature(spec).tap for spec in specs))
    if not taps:
        return {}
    truth = _truth_features(extractor, taps, job)
    collected = {spec.name: SampleValues(spec.computed_by, spec.reads_out, spec.samples) for spec in specs}
    for sample, places in zip(job.samples, job.places, strict=True):
        shown = extractor(sample, taps, places)  # of one sample at a time: those of all would not fit in memory
        for spec in specs:
            tap = _feature(spec).tap
            collected[spec.name].add(shown[tap].to(job.device), truth[tap].to(job.device))
    return {spec.name: collected[spec.name].values(truth[_feature(spec).tap].to(job.device)) for spec in specs}


def _paired_values(extractor: Extractor, spec: MetricSpec, job: Job) -> Tensor:
    """`(N,)` values of a formula that never compares different images: features live for one batch."""
    tap, parts, of_truth = _feature(spec).tap, [], _of_truth(extractor, job)
    for rows in slices(len(job.truth), job.batch):
        truth = of_truth.one_batch(job.truth[rows], tap)
        shown = (extractor.one_batch(sample[rows], tap) for sample in job.samples)
        parts.append(torch.stack([_compared(spec, each, truth) for each in shown]))
    return combine(torch.cat(parts, 1), spec.samples, spec.higher_is_better)


def _compared(spec: MetricSpec, shown: Tensor, truth: Tensor) -> Tensor:
    return spec.reads_out.conclude(spec.computed_by.compare(shown, truth))


def _of_truth(extractor: Extractor, job: Job) -> Extractor:
    """Return an extractor for truths, which still have the protocol's first step before them."""
    return replace(extractor, first=job.protocol_first)


def _truth_features(extractor: Extractor, taps: list[str], job: Job) -> dict[str, Tensor]:
    of_truth = _of_truth(extractor, job)
    if job.cache is None:
        return of_truth(job.truth, taps)
    network = extractor.network
    # Everything that changes a feature is in the key, so a cache may be shared between protocols and weights.
    entry = (job.protocol_first, extractor.resize, extractor.scale, extractor.precision)
    identity = (job.truth_digest, *entry, job.digests[network.name])
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    missing = [tap for tap in taps if (digest, network.name, tap) not in job.cache]
    if missing:
        for tap, computed in of_truth(job.truth, missing).items():
            job.cache[digest, network.name, tap] = computed.numpy()
    return {tap: as_tensor(job.cache[digest, network.name, tap]) for tap in taps}
