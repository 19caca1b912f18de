"""Scoring: reconstructions and their truth in, a typed table of numbers with uncertainty out.

Shape legend: N images, S samples of an image, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import _listing
from eval._scoring.call import Call, EncodingModel
from eval._scoring.feature_store import FeatureCache
from eval._scoring.one_pass import compute
from eval.networks import _weights as network_weights
from eval.networks._features import DTYPES, Precision
from eval.pictures import check_images
from eval.plugins import base as metric_plugins
from eval.plugins.base import Inputs, Plugin
from eval.protocols import base as protocols
from eval.protocols.base import MetricSpec, Protocol
from eval.statistics import bootstrap
from eval.statistics.bootstrap import Estimate

__all__ = ["EncodingModel", "FeatureCache", "MetricResult", "Scores", "score"]

Array = NDArray[np.float64]


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
        metrics: One result a metric, in the protocol's order; those of plug-ins stand last.
        per_image: For each computed metric `(N,)` float64, samples already averaged.
        weights: For each feature network the sha256 of its weights, or "untrained:<seed>".
        samples: S.
        precision: Of the networks' forward passes.
        plugins: Version of each plug-in beside the protocol, by name.
    """

    protocol: str
    version: int
    metrics: tuple[MetricResult, ...]
    per_image: Mapping[str, Array]
    weights: Mapping[str, str]
    samples: int
    precision: Precision = "float32"
    plugins: Mapping[str, int] = field(default_factory=dict)

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
        identity["precision"] = self.precision
        identity |= {f"plugin.{name}": str(version) for name, version in self.plugins.items()}
        identity |= {f"weights.{name}": digest for name, digest in self.weights.items()}
        return pa.table(columns).replace_schema_metadata(identity)


def score(  # noqa: PLR0913 - the one call that users make; everything after `device` is by keyword
    reconstructions: Tensor,
    truth: Tensor,
    protocol: str | Protocol = "mindeye2",
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
    *,
    features: FeatureCache | None = None,
    batch: int = 16,
    seed: int = 0,
    latents: tuple[Tensor, Tensor] | None = None,
    betas: tuple[Tensor, EncodingModel] | None = None,
    precision: Precision = "float32",
    plugins: Sequence[str | Plugin] = (),
) -> Scores:
    """Score reconstructions under a protocol.

    Args:
        reconstructions: `(N, 3, H, W)` or `(N, S, 3, H, W)` for S samples an image; uint8 or floating point in [0, 1],
            any size.
        truth: `(N, 3, H, W)` in the same order; its size and type may differ.
        protocol: A protocol or the name of one.
        weights: Folder with the feature networks' state dicts, searched before the usual places (see
            `eval.networks._weights.locate`), or "untrained" for seeded random ones, which marks the result.
        device: Where the networks run.
        features: Cache of truth features: looked up, and filled with what was missing.
        batch: Pictures a forward pass; changes nothing but speed and memory.
        seed: Of the bootstrap.
        latents: Predicted and true latents `(N, D)`, for retrieval.
        betas: Test betas `(N, V)`, averaged over repetitions, and an encoding model that predicts betas from pictures
            `(B, 3, H, W)` in [0, 1], for brain correlation.
        precision: Of the networks' forward passes. The reduced ones are faster on a GPU; the result says which it was.
        plugins: Metrics beside the protocol's, by name or as `module:OBJECT`; see `eval.plugins.base`.

    Returns:
        The values with their uncertainty, and the per-image table behind them. A metric whose inputs were not given
        has the status "not computed: needs ..." and no value.

    Raises:
        ValueError: If pictures, latents or betas are not what is described here, their numbers differ, or the protocol
            is unknown.
        MissingWeightsError: If a weights file is not there.
        WrongWeightsError: If a weights file belongs to another network.
    """
    chosen = protocols.find(protocol) if isinstance(protocol, str) else protocol
    _check(reconstructions, truth, latents, betas)
    if precision not in DTYPES:
        raise ValueError(_listing.unknown("precision", precision, list(DTYPES)))
    stacked = reconstructions if reconstructions.ndim == 5 else reconstructions[:, None]
    given = {"images": True, "predictions": latents, "true latents": latents, "betas": betas}
    reasons = {spec.name: _missing(spec, len(truth), given) for spec in chosen.metrics}
    wanted = [spec for spec in chosen.metrics if reasons[spec.name] is None]
    extra = _plugins(plugins, chosen)
    # All weights are looked for before anything is computed: a missing file must not cost an hour.
    digests = _digests(wanted, weights)
    more = {name: digest for plugin in extra for name, digest in plugin.digests(weights).items()}
    place = torch.device(device)
    call = Call(stacked, truth, chosen.first, weights, digests, place, batch, features, latents, betas, precision)
    per_image = compute(wanted, call)
    inputs = Inputs(stacked, truth, weights, place, batch)
    for plugin in extra:
        per_image |= {name: each.numpy() for name, each in plugin.values(inputs).items()}
    results = _results(chosen, extra, reasons, per_image, seed)
    versions = {plugin.name: plugin.version for plugin in extra}
    named = chosen.name, chosen.version
    return Scores(*named, results, per_image, digests | more, stacked.shape[1], precision, versions)


def _digests(specs: Sequence[MetricSpec], weights: Path | str | None) -> dict[str, str]:
    """Return the digest of the weights of each network that the metrics take, in their order."""
    networks = dict.fromkeys(spec.feature.network for spec in specs if spec.feature)
    return {network.name: network_weights.digest(network, weights) for network in networks}


def _results(
    protocol: Protocol,
    extra: Sequence[Plugin],
    reasons: Mapping[str, str | None],
    per_image: Mapping[str, Array],
    seed: int,
) -> tuple[MetricResult, ...]:
    """Return the means with their uncertainty: the protocol's metrics, computed or not, and those of plug-ins."""
    # The same draws for all metrics: their intervals come from the same resampled images.
    estimates = dict(zip(per_image, bootstrap.bootstraps(list(per_image.values()), seed=seed), strict=True))
    own = [_result(spec, reasons[spec.name], estimates) for spec in protocol.metrics]
    return (
        *own,
        *(_with_uncertainty(c.name, estimates[c.name], c.higher_is_better) for each in extra for c in each.columns),
    )


def _plugins(references: Sequence[str | Plugin], protocol: Protocol) -> list[Plugin]:
    """Return the plug-ins.

    Raises:
        ValueError: If one is not known, or a column's name stands twice.
    """
    found = [metric_plugins.find(reference) for reference in references]
    taken = [metric.name for metric in protocol.metrics] + [column.name for each in found for column in each.columns]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise ValueError(f"metric {twice[0]!r} stands twice: in {protocol.name} or in two plug-ins")
    return found


def _check(
    reconstructions: Tensor,
    truth: Tensor,
    latents: tuple[Tensor, Tensor] | None,
    betas: tuple[Tensor, EncodingModel] | None,
) -> None:
    check_images(truth, "truth", (4,))
    check_images(reconstructions, "reconstructions", (4, 5))
    if len(reconstructions) != len(truth):
        raise ValueError(f"{len(reconstructions)} reconstructions for {len(truth)} truths: every image needs its own")
    shown, true = tuple(reconstructions.shape[-2:]), tuple(truth.shape[-2:])
    if shown[0] != shown[1] and shown == true[::-1]:
        raise ValueError(
            f"reconstructions are {shown} high and wide, the truth {true}: height and width look exchanged"
        )
    if latents is not None:
        if latents[0].shape != latents[1].shape:
            shapes = tuple(latents[0].shape), tuple(latents[1].shape)
            raise ValueError(f"predicted latents {shapes[0]} and true latents {shapes[1]} must have one shape")
        for name, values in zip(("predicted latents", "true latents"), latents, strict=True):
            _check_rows(values, name, len(truth))
    if betas is not None:
        _check_rows(betas[0], "test betas", len(truth))


def _check_rows(values: Tensor, name: str, n: int) -> None:
    """Check that there is a row of finite numbers for each of N images."""
    if values.ndim < 2 or len(values) != n or not values.is_floating_point():
        kind = f"{tuple(values.shape)} {values.dtype}"
        raise ValueError(f"{name} must be floating point with a row for each of {n} images; got {kind}")
    bad = ~values.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{name} of image {int(bad.nonzero()[0])} are not finite")


def _missing(spec: MetricSpec, n: int, given: Mapping[str, object]) -> str | None:
    """What a metric needs and was not given, or None."""
    lacking: list[str] = [need for need in spec.needs if given[need] is None]
    if n < spec.reads_out.least_images:
        lacking.append(f"at least {spec.reads_out.least_images} images")
    return " and ".join(lacking) or None


def _result(spec: MetricSpec, reason: str | None, estimates: Mapping[str, Estimate]) -> MetricResult:
    if reason is not None:
        return MetricResult(spec.name, None, 0, None, None, spec.higher_is_better, f"not computed: needs {reason}")
    return _with_uncertainty(spec.name, estimates[spec.name], spec.higher_is_better)


def _with_uncertainty(name: str, estimate: Estimate, higher_is_better: bool) -> MetricResult:
    error = None if np.isnan(estimate.standard_error) else estimate.standard_error
    interval = (estimate.low, estimate.high)
    return MetricResult(name, estimate.value, estimate.n, error, interval, higher_is_better)
