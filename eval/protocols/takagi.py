"""Takagi & Nishimoto's protocol (2023): identification of images by features of five samples, as its scripts do it."""

from __future__ import annotations

from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.networks.base import Network
from eval.networks.clip_vit_l14 import CLIP_VIT_L14_HIDDEN
from eval.networks.torchvision import ALEXNET_POOLED, INCEPTION_V3
from eval.pictures import PilResize
from eval.protocols.base import Feature, MetricSpec, Protocol

TORCHVISION = PilResize(299, "bilinear")
CLIP_PROCESSOR = PilResize(224, "bicubic")


def _on_features(name: str, label: str, network: Network, tap: str, resize: PilResize) -> MetricSpec:
    feature = Feature(network, tap, resize)
    readout = Identification(transpose=True, ties="zero")
    return MetricSpec(name, label, TWO_WAY_IDENTIFICATION, feature, readout=readout, samples="mean-comparison")


PROTOCOL = Protocol(
    name="takagi",
    version=1,
    summary="Identification accuracy over seven layers, five samples an image, 982 shared images of NSD.",
    first=None,
    metrics=(
        _on_features("inception", "Inception V3", INCEPTION_V3, "avgpool", TORCHVISION),
        _on_features("alex5", "AlexNet5", ALEXNET_POOLED, "features.5", TORCHVISION),
        _on_features("alex12", "AlexNet12", ALEXNET_POOLED, "features.12", TORCHVISION),
        _on_features("alex18", "AlexNet18", ALEXNET_POOLED, "classifier.5", TORCHVISION),
        _on_features("clip-h6", "CLIP h6", CLIP_VIT_L14_HIDDEN, "hidden.6", CLIP_PROCESSOR),
        _on_features("clip-h12", "CLIP h12", CLIP_VIT_L14_HIDDEN, "hidden.12", CLIP_PROCESSOR),
        _on_features("clip", "CLIP", CLIP_VIT_L14_HIDDEN, "encode_image", CLIP_PROCESSOR),
    ),
    quirks=(
        "each truth is compared with other reconstructions: the transpose of what Brain-Diffuser and MindEye do",
        "correlations are averaged over the samples of an image before the comparison, so that a sample cannot win",
        "AlexNet sees 299 px, Inception's size; its layers are taken after max-pooling, unlike Alex(2) and Alex(5)",
        "pictures are files: resized by PIL with antialias, rounded to 8 bits",
        "no PixCorr, SSIM or distances: those of later tables were computed by others from its pictures",
    ),
)
