"""MindEye1's protocol (Scotti et al. 2023), as its published script and pinned environment compute it.

MindEye2's notebook is this script moved to other test images: the metrics are the same, digit for digit. What differs
lies before the metrics, in the test set and in how many samples were drawn and which was shown.
"""

from __future__ import annotations

from eval.protocols import mindeye2
from eval.protocols.base import Protocol

PROTOCOL = Protocol(
    name="mindeye1",
    version=1,
    summary="The eight metrics of MindEye1's Reconstruction_Metrics script on 982 shared images of NSD (37 sessions).",
    first=mindeye2.PROTOCOL.first,
    metrics=tuple(metric for metric in mindeye2.PROTOCOL.metrics if metric.kind != "brain"),
    quirks=(
        "the sum over images is divided by 982 whatever their number; here by the number of images",
        "both pictures are shrunk to 256 px first, so that PixCorr and SSIM at 425 px compare upsampled pictures",
        "no antialias anywhere (torchvision 0.15 on tensors)",
        "SSIM is two-dimensional (scikit-image 0.20)",
        "Inception at 342 px and EfficientNet at 255 px: the presets' resize sizes without their centre crops",
        "EfficientNet-B1 has weights V2 at 255 px; Brain-Diffuser's column of that name has V1 at 224 px",
        "the published rows show one of 16 samples, chosen by the embedding predicted from the brain: selection "
        "belongs to recipes, not here",
        "CLIP in float32, which the script runs in float16 on a GPU",
        "retrieval labels are swapped: the similarity helper returns the transpose, so the column printed as image "
        "retrieval finds the brain response given the image, and the other one the image given the brain response",
        "retrieval draws 30 batches of 300 from a resampled stream, which may repeat images; here pools never do",
    ),
)
