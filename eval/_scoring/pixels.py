"""Pixel metrics: a few pictures at a time, each size once, and of the truths no more than was not prepared before.

Shape legend: N images, B of them together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eval._scoring import feature_store
from eval._scoring.call import Call
from eval._scoring.samples import combine
from eval.metrics.base import TOGETHER, TruthParts
from eval.pictures import Step, planes_last, unit_images
from eval.protocols.base import MetricSpec

PIXELS = "pixels"
"""Stands in caches where features have their network."""
MOST_KEPT = 1 << 29
"""Bytes of prepared truths that a cache is given: 150 pictures at 425 px under PixCorr and SSIM. Further pictures are
prepared each time, which costs less than memory without bound."""


def pixel_values(specs: Sequence[MetricSpec], call: Call) -> dict[str, Tensor]:
    """Compute pixel metrics.

    Args:
        specs: The metrics.
        call: Pictures, their first step, the cache of truths.

    Returns:
        For each metric `(N,)` float64, samples combined by its rule.

    Raises:
        ValueError: If a metric that resizes nothing is given two sizes.
    """
    for spec in specs:
        _check_sizes(spec, call)
    parts: dict[str, list[Tensor]] = {spec.name: [] for spec in specs}
    # Resized pictures take a hundred times the memory of what is left of them, so only a few exist at a time.
    for rows in slices(len(call.truth), TOGETHER):
        for resize in dict.fromkeys(spec.resize for spec in specs):  # metrics of one size share the pictures
            group = [spec for spec in specs if spec.resize == resize]
            truths = _truth_parts(group, rows, call)
            shown = [_sized(sample[rows], call.first, resize, call) for sample in call.samples]
            for spec, truth in zip(group, truths, strict=True):
                parts[spec.name].append(torch.stack([spec.formula.pixels.compare(each, truth) for each in shown]))
    return {s.name: combine(torch.cat(parts[s.name], 1), s.samples, s.higher_is_better) for s in specs}


def slices(n: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` of N things."""
    return (slice(start, start + size) for start in range(0, n, size))


def _check_sizes(spec: MetricSpec, call: Call) -> None:
    step = spec.resize or call.protocol_first
    shown, truth = call.samples[0].shape[-2:], call.truth.shape[-2:]
    if step is None and shown != truth:
        sizes = f"{tuple(shown)} and {tuple(truth)}"
        raise ValueError(
            f"metric {spec.name!r} resizes nothing: reconstructions and truth of {sizes} px do not compare"
        )


def _sized(images: Tensor, first: Step | None, resize: Step | None, call: Call) -> Tensor:
    """Return pictures as metrics take them: float32 on the device, planes last, after both steps."""
    pixels = unit_images(images.to(call.device)).float()
    pixels = planes_last(first(pixels) if first else pixels)
    return resize(pixels) if resize else pixels


def _truth_parts(specs: Sequence[MetricSpec], rows: slice, call: Call) -> list[TruthParts]:
    """Return what each metric of one size needs of these truths: from the cache, or made and put there."""
    digest = feature_store.digest(call.truth_digest, call.protocol_first, specs[0].resize, TOGETHER)
    cache = {} if call.cache is None else call.cache
    keys = [_keys(digest, spec, rows) for spec in specs]
    if all(key in cache for each in keys for key in each):
        return [tuple(feature_store.as_tensor(cache[key]).to(call.device) for key in each) for each in keys]
    truth = _sized(call.truth[rows], call.protocol_first, specs[0].resize, call)
    made = [spec.formula.pixels.prepare(truth) for spec in specs]
    # The first pictures are kept, as many as the limit allows: each picture takes as much as those of this part do.
    a_picture = sum(part.nbytes for each in made for part in each) / len(truth)
    if (rows.start + len(truth)) * a_picture <= MOST_KEPT:
        for key, part in zip(itertools.chain(*keys), itertools.chain(*made), strict=True):
            cache[key] = part.cpu().numpy()
    return made


def _keys(digest: str, spec: MetricSpec, rows: slice) -> list[tuple[str, str, str]]:
    """Return the places in a cache of what a metric needs of some truths."""
    return [(digest, PIXELS, f"{spec.formula.name} {part} {rows.start}") for part in spec.formula.pixels.parts]
