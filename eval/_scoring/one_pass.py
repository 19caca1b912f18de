"""From pictures to per-image values: one network in memory at a time, no more features than a formula has to see.

Shape legend: N images, S samples of an image, D features, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval._scoring import feature_store
from eval._scoring.call import Call, EncodingModel, ready
from eval._scoring.pixels import pixel_values, slices
from eval._scoring.samples import SampleValues, combine
from eval.networks import _weights as network_weights
from eval.networks._features import Extractor
from eval.networks.base import Network
from eval.pictures import Step, unit_images
from eval.protocols.base import Feature, MetricSpec

Array = NDArray[np.float64]


def compute(specs: Sequence[MetricSpec], call: Call) -> dict[str, Array]:
    """Compute metrics whose inputs are all there.

    Args:
        specs: The metrics.
        call: Pictures and where to compute.

    Returns:
        For each metric, in the given order, `(N,)` float64 with samples combined by its rule.

    Raises:
        ValueError: If a network or the encoding model gives something unusable.
        MissingWeightsError: If a weights file is not there.
        WrongWeightsError: If a weights file belongs to another network.
    """
    networkless = [spec for spec in specs if spec.feature is None]
    values = {
        spec.name: _SUPPLIED[spec.formula.reads](spec, call) for spec in networkless if spec.formula.reads in _SUPPLIED
    }
    call = ready(call, networks=len(networkless) < len(specs))
    values |= pixel_values([spec for spec in networkless if spec.formula.reads not in _SUPPLIED], call)
    for network in dict.fromkeys(spec.feature.network for spec in specs if spec.feature):
        # One at a time in memory: CLIP alone holds 1.2 GB.
        values |= _network_values(network, [s for s in specs if s.feature and s.feature.network == network], call)
    # Computed in the order of the networks, told in the order of the protocol.
    return {spec.name: values[spec.name].double().cpu().numpy() for spec in specs}


def _latent_values(spec: MetricSpec, call: Call) -> Tensor:
    assert call.latents is not None
    predicted, true = (side.to(call.device) for side in call.latents)
    return spec.formula(predicted, true, spec.reads_out)


def _beta_values(spec: MetricSpec, call: Call) -> Tensor:
    assert call.betas is not None
    measured, encode = call.betas
    predicted = [_encoded(sample, encode, measured, call) for sample in call.samples]
    values = torch.stack([spec.formula.compare(each, measured.flatten(1)) for each in predicted])
    return combine(values, spec.samples, spec.higher_is_better)


def _encoded(images: Tensor, encode: EncodingModel, measured: Tensor, call: Call) -> Tensor:
    """Predicted betas `(N, V)` of one sample of all images."""
    parts = []
    for rows in slices(len(images), call.batch):
        with torch.inference_mode():
            betas = encode(unit_images(images[rows].to(call.device)).float()).float().cpu()
        expected = tuple(measured[rows].flatten(1).shape)
        if tuple(betas.shape) != expected:
            raise ValueError(f"the encoding model gave betas {tuple(betas.shape)}, the test betas are {expected}")
        parts.append(betas)
    return torch.cat(parts)


_SUPPLIED: Mapping[str, Callable[[MetricSpec, Call], Tensor]] = {"latents": _latent_values, "betas": _beta_values}
"""How metrics are computed that read what the caller supplied beside pictures."""


def _network_values(network: Network, specs: list[MetricSpec], call: Call) -> dict[str, Tensor]:
    """Values of all metrics of one network, which leaves memory on return."""
    module = network_weights.load(network, call.weights, call.device)
    values: dict[str, Tensor] = {}
    # A network may be fed at several sizes; each size is one pass over the pictures.
    for entry in dict.fromkeys(_entry(_feature(spec)) for spec in specs):
        group = [spec for spec in specs if _entry(_feature(spec)) == entry]
        extractor = Extractor(network, module, call.first, entry[0], call.batch, entry[1], call.precision)
        values |= _feature_values(extractor, [s for s in group if s.formula.reads == "features"], call)
        for spec in group:
            if spec.formula.reads == "paired features":
                values[spec.name] = _paired_values(extractor, spec, call)
    return values


def _feature(spec: MetricSpec) -> Feature:
    assert spec.feature is not None
    return spec.feature


def _entry(feature: Feature) -> tuple[Step | None, float]:
    """How pictures enter the network."""
    return feature.resize, feature.scale


def _feature_values(extractor: Extractor, specs: list[MetricSpec], call: Call) -> dict[str, Tensor]:
    taps = list(dict.fromkeys(_feature(spec).tap for spec in specs))
    if not taps:
        return {}
    of_truth, weights = _of_truth(extractor, call), call.digests[extractor.network.name]
    truth = feature_store.features(of_truth, call.truth, taps, call.cache, call.truth_digest, weights)
    collected = {spec.name: SampleValues(spec.formula, spec.reads_out, spec.samples) for spec in specs}
    for sample, places in zip(call.samples, call.places, strict=True):
        shown = extractor(sample, taps, places)  # of one sample at a time: those of all would not fit in memory
        for spec in specs:
            tap = _feature(spec).tap
            collected[spec.name].add(shown[tap].to(call.device), truth[tap].to(call.device))
    return {spec.name: collected[spec.name].values(truth[_feature(spec).tap].to(call.device)) for spec in specs}


def _paired_values(extractor: Extractor, spec: MetricSpec, call: Call) -> Tensor:
    """`(N,)` values of a formula that never compares different images: features live for one batch."""
    tap, parts, of_truth = _feature(spec).tap, [], _of_truth(extractor, call)
    for rows in slices(len(call.truth), call.batch):
        truth = of_truth.one_batch(call.truth[rows], tap)
        shown = (extractor.one_batch(sample[rows], tap) for sample in call.samples)
        parts.append(torch.stack([spec.formula(each, truth, spec.reads_out) for each in shown]))
    return combine(torch.cat(parts, 1), spec.samples, spec.higher_is_better)


def _of_truth(extractor: Extractor, call: Call) -> Extractor:
    """Return an extractor for truths, which still have the protocol's first step before them."""
    return replace(extractor, first=call.protocol_first)
