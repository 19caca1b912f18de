"""Brain-Diffuser's protocol (Ozcelik & VanRullen 2023), as its two evaluation scripts and pinned environment do it."""

from __future__ import annotations

from eval.metrics.correlation_distance import CORRELATION_DISTANCE
from eval.metrics.identification import TWO_WAY_IDENTIFICATION
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.ssim import SSIM_COLUMNWISE
from eval.networks.base import Network
from eval.networks.clip_vit_l14 import CLIP_VIT_L14
from eval.networks.torchvision import ALEXNET, EFFICIENTNET_B1_V1, INCEPTION_V3, SWAV_RESNET50
from eval.pictures import PilResize
from eval.protocols.base import Feature, MetricSpec, Protocol

NETWORK_SIZE = PilResize(224, "bilinear")
"""torchvision's resize of a PIL image: antialiased, 8 bits."""
PIXEL_SIZE = PilResize(425, "bicubic")
"""`Image.resize` without a filter, which is bicubic since Pillow 7; truths of NSD have this size already."""


def _on_features(name: str, label: str, network: Network, tap: str) -> MetricSpec:
    formula = CORRELATION_DISTANCE if name in ("effnet", "swav") else TWO_WAY_IDENTIFICATION
    return MetricSpec(name, label, formula, Feature(network, tap, NETWORK_SIZE))


PROTOCOL = Protocol(
    name="brain-diffuser",
    version=1,
    summary="The eight metrics of Brain-Diffuser's scripts on picture files of 982 shared images of NSD (37 sessions).",
    first=None,
    metrics=(
        MetricSpec("pixcorr", "PixCorr", PIXCORR, resize=PIXEL_SIZE),
        MetricSpec("ssim", "SSIM", SSIM_COLUMNWISE, resize=PIXEL_SIZE),
        _on_features("alex2", "Alex(2)", ALEXNET, "features.4"),
        _on_features("alex5", "Alex(5)", ALEXNET, "features.11"),
        _on_features("inception", "Incep", INCEPTION_V3, "avgpool"),
        _on_features("clip", "CLIP", CLIP_VIT_L14, "encode_image"),
        _on_features("effnet", "Eff", EFFICIENTNET_B1_V1, "avgpool"),
        _on_features("swav", "SwAV", SWAV_RESNET50, "avgpool"),
    ),
    quirks=(
        "pictures are files: rounded to 8 bits before and after every resizing",
        "PIL resizes with antialias: bilinear to 224 px for the networks, bicubic to 425 px for PixCorr and SSIM",
        "SSIM is one-dimensional: scikit-image 0.17 takes the columns of the grey image for channels "
        "(multichannel=True); today's channel_axis=-1 gives the same number",
        "every network sees 224 px, also Inception and EfficientNet, which were trained on larger pictures",
        "EfficientNet-B1 has weights V1 (weights=True maps to them); MindEye's column of that name has V2 at 255 px",
        "CLIP in float32 and with a bilinear kernel; its own preprocessing is bicubic",
        "published predictions were standardised with the statistics of the test set: that belongs to recipes",
    ),
)
