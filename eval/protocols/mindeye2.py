"""MindEye2's protocol (Scotti et al. 2024), as its published notebook and pinned environment compute it."""

from __future__ import annotations

from eval.metrics.brain_correlation import BRAIN_CORRELATION
from eval.metrics.correlation_distance import CORRELATION_DISTANCE
from eval.metrics.identification import TWO_WAY_IDENTIFICATION
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.retrieval import TOP_1_RETRIEVAL, Given, Retrieval
from eval.metrics.ssim import SSIM
from eval.networks.base import Network
from eval.networks.clip_vit_l14 import CLIP_VIT_L14
from eval.networks.torchvision import ALEXNET, EFFICIENTNET_B1_V2, INCEPTION_V3, SWAV_RESNET50
from eval.pictures import Resize
from eval.protocols.base import Feature, MetricSpec, Protocol


def _resize(size: int) -> Resize:
    # torchvision 0.16 was pinned: its default for tensors is bilinear without antialias.
    return Resize(size, antialias=False)


def _on_features(name: str, label: str, network: Network, tap: str, size: int) -> MetricSpec:
    formula = CORRELATION_DISTANCE if name in ("effnet", "swav") else TWO_WAY_IDENTIFICATION
    return MetricSpec(name, label, formula, Feature(network, tap, _resize(size)))


def _retrieval(name: str, label: str, given: Given) -> MetricSpec:
    readout = Retrieval(given, pool=300, repeats=30)
    return MetricSpec(name, label, TOP_1_RETRIEVAL, readout=readout, needs=("predictions", "true latents"))


PROTOCOL = Protocol(
    name="mindeye2",
    version=1,
    summary="The eight metrics of MindEye2's final_evaluations notebook on the 1000 shared images of NSD.",
    first=_resize(256),
    metrics=(
        MetricSpec("pixcorr", "PixCorr", PIXCORR, resize=_resize(425)),
        MetricSpec("ssim", "SSIM", SSIM, resize=_resize(425)),
        _on_features("alex2", "Alex(2)", ALEXNET, "features.4", 256),
        _on_features("alex5", "Alex(5)", ALEXNET, "features.11", 256),
        _on_features("inception", "Incep", INCEPTION_V3, "avgpool", 342),
        _on_features("clip", "CLIP", CLIP_VIT_L14, "encode_image", 224),
        _on_features("effnet", "Eff", EFFICIENTNET_B1_V2, "avgpool", 255),
        _on_features("swav", "SwAV", SWAV_RESNET50, "avgpool", 224),
        # The labels are the published ones. What they really are is said by `given`, and by the quirk below.
        _retrieval("retrieval-fwd", "Image retr. (swapped)", "image"),
        _retrieval("retrieval-bwd", "Brain retr. (swapped)", "brain"),
        MetricSpec("brain-correlation", "Brain corr.", BRAIN_CORRELATION, needs=("images", "betas")),
    ),
    quirks=(
        "both pictures are shrunk to 256 px first, so that PixCorr and SSIM at 425 px compare upsampled pictures",
        "no antialias anywhere (torchvision 0.16 on tensors)",
        "SSIM is two-dimensional (scikit-image 0.22)",
        "identification compares with other truths, though the paper's appendix describes other reconstructions",
        "Inception at 342 px and EfficientNet at 255 px: the presets' resize sizes without their centre crops",
        "EfficientNet-B1 has weights V2 at 255 px; Brain-Diffuser's column of that name has V1 at 224 px",
        "the published row scores 0.75 * refined + 0.25 * blurry: blending belongs to recipes, not here",
        "CLIP in float32, which the notebook runs in float16 on a GPU",
        "retrieval labels are swapped: the similarity helper returns the transpose, so the column printed as image "
        "retrieval finds the brain response given the image, and the other one the image given the brain response",
        "retrieval averages 30 pools of 300 drawn from all test images; tied candidates count as lost",
        "brain correlation is over the voxels that are given; the paper has a table by region, from the GNet encoder",
    ),
)
