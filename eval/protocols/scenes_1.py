"""The protocol of the embedded default: the eight published formulas on features that mean something for scenes.

ImageNet networks would have to be fetched, and without weights they say nothing. The scene network ships with the
package; its four taps stand where the published columns have theirs: AlexNet's two at `low` and `mid`, Inception's
pooled layer at `high`, CLIP's embedding at `embedding`, and the two distances of EfficientNet and SwAV at `mid` and
`high`. Numbers compare with other `scenes-1` rows only.
"""

from __future__ import annotations

from eval.metrics.base import Formula
from eval.metrics.correlation_distance import CORRELATION_DISTANCE
from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.ssim import SSIM
from eval.networks.scene.network import SCENE
from eval.pictures import Resize
from eval.protocols.base import Feature, MetricSpec, Protocol

SIZE = Resize(64, antialias=True)


def _on_features(name: str, label: str, formula: Formula, tap: str) -> MetricSpec:
    readout = Identification(ties="half") if formula is TWO_WAY_IDENTIFICATION else None
    return MetricSpec(name, label, formula, Feature(SCENE, tap, SIZE), readout=readout)


PROTOCOL = Protocol(
    name="scenes-1",
    version=1,
    summary="Eight metrics at 64 px for procedural scenes, with the features of the shipped scene network.",
    first=SIZE,
    metrics=(
        MetricSpec("pixcorr", "PixCorr", PIXCORR),
        MetricSpec("ssim", "SSIM", SSIM),
        _on_features("scene-low", "Scene(low)", TWO_WAY_IDENTIFICATION, "low"),
        _on_features("scene-mid", "Scene(mid)", TWO_WAY_IDENTIFICATION, "mid"),
        _on_features("scene-high", "Scene(high)", TWO_WAY_IDENTIFICATION, "high"),
        _on_features("scene-embedding", "Scene(emb)", TWO_WAY_IDENTIFICATION, "embedding"),
        _on_features("scene-mid-dist", "Scene(mid) dist", CORRELATION_DISTANCE, "mid"),
        _on_features("scene-high-dist", "Scene(high) dist", CORRELATION_DISTANCE, "high"),
    ),
    quirks=(
        "ties of identification count one half; as published they count nothing",
        "the scene network saw other scenes of the same simulator, never a stimulus",
    ),
)
