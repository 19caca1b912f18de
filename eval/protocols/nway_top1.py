"""N-way top-1 accuracy of Mind-Vis (Chen et al. 2023) and CnD, whose evaluation file is the same."""

from __future__ import annotations

from eval.metrics.n_way import N_WAY_TOP_K, NWay
from eval.networks.torchvision import VIT_H_14
from eval.pictures import PilResize
from eval.protocols.base import Feature, MetricSpec, Protocol, SampleRule

CLASSES = Feature(VIT_H_14, "probabilities", PilResize(518, "bicubic"))


def _accuracy(ways: int, samples: SampleRule) -> MetricSpec:
    best = samples == "best-sample"
    name, label = f"{ways}-way{'-max' if best else ''}", f"{ways}-way top-1{' (max)' if best else ''}"
    return MetricSpec(name, label, N_WAY_TOP_K, CLASSES, readout=NWay(ways, 1, 1000), samples=samples)


PROTOCOL = Protocol(
    name="nway-top1",
    version=1,
    summary="50- and 100-way top-1 accuracy of an ImageNet classifier, five samples an image, 50 images of GOD.",
    first=None,
    metrics=(
        _accuracy(50, "mean-score"),
        _accuracy(50, "best-sample"),
        _accuracy(100, "mean-score"),
        _accuracy(100, "best-sample"),
    ),
    quirks=(
        "the true class is the classifier's own answer to the true picture, not the data set's label",
        "max is the best of the five sets of samples by its own score: an oracle, shown and never ranked",
        "1000 trials an image, as in the released evaluation; 50 during training, where published rows may come from",
        "trials are seeded here and draw the number of better competitors (hypergeometric), the same distribution; the "
        "original draws the competitors from NumPy's global state",
        "a tie of probabilities is lost here; the original leaves it to the order that top-k returns",
        "the same file's pairwise MSE, PCC, SSIM and LPIPS and its FID of 64 features are not part of this protocol",
    ),
)
