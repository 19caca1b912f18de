"""The protocol of the CS292F project's evaluation notebook: four metrics at 512 px that compare with nobody else's."""

from __future__ import annotations

from eval.metrics.correlation_distance import CORRELATION_DISTANCE
from eval.metrics.perceptual_distance import PERCEPTUAL_DISTANCE
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.ssim import SSIM_UNIFORM
from eval.networks.lpips_alex import LPIPS_ALEX
from eval.networks.torchvision import EFFICIENTNET_V2_S
from eval.pictures import PilResize
from eval.protocols.base import Feature, MetricSpec, Protocol

PROTOCOL = Protocol(
    name="cs292f",
    version=1,
    summary="PCC, SSIM, LPIPS and EfficientNet-V2-S distance at 512 px, five samples an image, NSD and THINGS.",
    first=PilResize(512, "bilinear"),
    metrics=(
        MetricSpec("pcc", "PCC", PIXCORR),
        MetricSpec("ssim", "SSIM", SSIM_UNIFORM),
        MetricSpec("lpips", "LPIPS", PERCEPTUAL_DISTANCE, Feature(LPIPS_ALEX, "weighted", None)),
        MetricSpec(
            "effnet",
            "Eff",
            CORRELATION_DISTANCE,
            Feature(EFFICIENTNET_V2_S, "avgpool", None, scale=255.0),
            samples="mean-feature",
        ),
    ),
    quirks=(
        "the truth is resized to 512 px by PIL (bilinear, antialiased, 8 bits); reconstructions have that size",
        "SSIM of the grey pictures has scikit-image's default window, 7 x 7 and uniform, not the Gaussian of the field",
        "EfficientNet-V2-S sees pixels from 0 to 255, normalised as if they were in [0, 1]: far out of its range",
        "its features are averaged over the samples before the distance, the other metrics are averaged afterwards",
        "LPIPS is that of AlexNet, on [-1, 1] pixels at 512 px",
    ),
)
