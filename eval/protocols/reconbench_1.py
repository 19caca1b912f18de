"""Our own protocol, version 1. Each choice and why.

Pictures. Every picture is resized once, from the size it came in, by a kernel with antialias. A first step through
256 px smooths what PixCorr and SSIM are about; without antialias a shrunk picture depends on which pixels happen to be
hit. Tensors are resized, not 8-bit files: rounding is a property of a file format, not of a reconstruction. PixCorr and
SSIM are taken at 425 px, the size of NSD's stimuli, so that the truth is never touched. No blending and no selection:
several samples are scored each and averaged, because the expected picture is what a system offers; whoever shows one of
N chooses before, and says so.

SSIM is the two-dimensional one with the Gaussian window of Wang et al. 2004, not the column-wise number that old
scikit-image printed under that name. LPIPS stands beside it because PixCorr and SSIM reward blur: a blurred average has
the best values published in both, at chance in Inception and CLIP.

Networks see the size they were trained or published with: AlexNet 224, Inception 299, CLIP 224 (bicubic, as CLIP's own
preprocessing), EfficientNet-B1 240, SwAV 224, LPIPS 256. AlexNet's layers, Inception's and SwAV's pooled layer and
CLIP's embedding are those of all published tables, so that a reader may look across.

Identification asks of each reconstruction whether it is closer to its own truth than to other truths, which is what
identifying an image means, and what most tables print. The transpose (is a truth closer to its own reconstruction than
to others?) stands beside it, since papers describe one and compute the other; it is not ranked, or each feature would
count twice. Ties count one half: a system that shows one picture for everything is then at chance, 0.5, in both.

Both EfficientNets are shown because "Eff" means V1 in some tables and V2 in others; ranks count V2, which most use.

Retrieval is labelled by its definition: image retrieval finds the image given the brain response. Instead of 30 random
pools it takes the expectation over all pools of 300, which has no sampling noise. It and brain correlation need more
than pictures, so ranks never count them.
"""

from __future__ import annotations

from typing import Literal

from eval.metrics.brain_correlation import BRAIN_CORRELATION
from eval.metrics.correlation_distance import CORRELATION_DISTANCE
from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.metrics.perceptual_distance import PERCEPTUAL_DISTANCE
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.retrieval import TOP_1_RETRIEVAL, Given, Retrieval
from eval.metrics.ssim import SSIM
from eval.networks.base import Network
from eval.networks.clip_vit_l14 import CLIP_VIT_L14
from eval.networks.lpips_alex import LPIPS_ALEX
from eval.networks.torchvision import ALEXNET, EFFICIENTNET_B1_V1, EFFICIENTNET_B1_V2, INCEPTION_V3, SWAV_RESNET50
from eval.pictures import Resize
from eval.protocols.base import Feature, MetricSpec, Protocol


def _resize(size: int, interpolation: Literal["bilinear", "bicubic"] = "bilinear") -> Resize:
    return Resize(size, antialias=True, interpolation=interpolation)


def _both_directions(name: str, label: str, feature: Feature) -> tuple[MetricSpec, MetricSpec]:
    formula = TWO_WAY_IDENTIFICATION
    there, back = (Identification(transpose=transpose, ties="half") for transpose in (False, True))
    return (
        MetricSpec(name, label, formula, feature, readout=there),
        MetricSpec(f"{name}-transposed", f"{label} transposed", formula, feature, readout=back, counted=False),
    )


def _distance(name: str, label: str, network: Network, size: int, counted: bool = True) -> MetricSpec:
    feature = Feature(network, "avgpool", _resize(size))
    return MetricSpec(name, label, CORRELATION_DISTANCE, feature, counted=counted)


def _retrieval(name: str, label: str, given: Given) -> MetricSpec:
    readout = Retrieval(given, pool=300)
    return MetricSpec(name, label, TOP_1_RETRIEVAL, readout=readout, needs=("predictions", "true latents"))


PROTOCOL = Protocol(
    name="reconbench-1",
    version=1,
    summary="Resized once with antialias, 2-D SSIM, LPIPS, identification both ways with ties one half, both EffNets.",
    first=None,
    metrics=(
        MetricSpec("pixcorr", "PixCorr", PIXCORR, resize=_resize(425)),
        MetricSpec("ssim", "SSIM", SSIM, resize=_resize(425)),
        MetricSpec("lpips", "LPIPS", PERCEPTUAL_DISTANCE, Feature(LPIPS_ALEX, "weighted", _resize(256))),
        *_both_directions("alex2", "Alex(2)", Feature(ALEXNET, "features.4", _resize(224))),
        *_both_directions("alex5", "Alex(5)", Feature(ALEXNET, "features.11", _resize(224))),
        *_both_directions("inception", "Incep", Feature(INCEPTION_V3, "avgpool", _resize(299))),
        *_both_directions("clip", "CLIP", Feature(CLIP_VIT_L14, "encode_image", _resize(224, "bicubic"))),
        _distance("effnet-v1", "Eff V1", EFFICIENTNET_B1_V1, 240, counted=False),
        _distance("effnet-v2", "Eff V2", EFFICIENTNET_B1_V2, 240),
        _distance("swav", "SwAV", SWAV_RESNET50, 224),
        _retrieval("retrieval-image", "Image retr.", "brain"),
        _retrieval("retrieval-brain", "Brain retr.", "image"),
        MetricSpec("brain-correlation", "Brain corr.", BRAIN_CORRELATION, needs=("images", "betas")),
    ),
    quirks=(
        "CLIP in float32",
        "the bicubic kernel may leave [0, 1] by a little before the networks; nothing is clipped or rounded",
    ),
)
