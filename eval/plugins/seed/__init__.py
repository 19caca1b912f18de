"""SEED (Park et al., ICLR 2026; github.com/Concarne2/SEED): objects, captions and EfficientNet features, averaged.

SEED = (Object F1 + caption similarity + (1 - EfficientNet distance)) / 3, an image at a time. Objects of 82 classes are
found by MM-Grounding-DINO-L, captions are written by GIT-large and compared as sentences by all-MiniLM-L6-v2, features
are those of EfficientNet-B1 V2 at 255 px. Known to differ from the released scripts: captions and objects are computed
by transformers' classes from the same published weights where the scripts run mmdetection; pictures are tensors, not
files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eval.metrics.correlation_distance import correlation_distance
from eval.networks import _weights as weights
from eval.networks._features import Extractor
from eval.networks.torchvision import EFFICIENTNET_B1_V2
from eval.pictures import Resize, unit_images
from eval.plugins.base import Column, Inputs, Model, Plugin, locate
from eval.plugins.seed.captions import Captioner, Sentences, caption_similarity
from eval.plugins.seed.objects import ObjectDetector, object_f1

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
DETECTOR = Model(
    "mm_grounding_dino_large_all",
    "openmmlab-community/mm_grounding_dino_large_all",
    ("config.json", "model.safetensors", "preprocessor_config.json", *TOKENIZER),
    "Apache-2.0",
)
CAPTIONER = Model(
    "git-large-coco",
    "microsoft/git-large-coco",
    ("config.json", "model.safetensors", "preprocessor_config.json", *TOKENIZER),
    "MIT",
)
SENTENCES = Model(
    "all-MiniLM-L6-v2",
    "sentence-transformers/all-MiniLM-L6-v2",
    ("config.json", "model.safetensors", *TOKENIZER),
    "Apache-2.0",
)


def compute(inputs: Inputs) -> dict[str, Tensor]:
    """Return the three parts and their mean, `(S, N)` each.

    Raises:
        MissingWeightsError: If a model is not on this machine.
    """
    sides = [*inputs.reconstructions.unbind(1), inputs.truth]
    parts = [_objects(sides, inputs), _captions(sides, inputs), _features(sides, inputs)]
    names = [column.name for column in COLUMNS]
    return dict(zip(names, [*parts, torch.stack(parts).mean(0)], strict=True))


def _batches(images: Tensor, batch: int, work: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what some work gives for pictures `(B, 3, H, W)` in [0, 1], joined."""
    return torch.cat([work(unit_images(part).float()) for part in images.split(batch)])


def _objects(sides: list[Tensor], inputs: Inputs) -> Tensor:
    detector = ObjectDetector(locate(DETECTOR, inputs.weights), inputs.device)
    *shown, truth = (_batches(side, inputs.batch, detector) for side in sides)
    return torch.stack([object_f1(each, truth) for each in shown])


def _captions(sides: list[Tensor], inputs: Inputs) -> Tensor:
    captioner = Captioner(locate(CAPTIONER, inputs.weights), inputs.device)
    sentences = Sentences(locate(SENTENCES, inputs.weights), inputs.device)
    *shown, truth = (_batches(side, inputs.batch, lambda part: sentences(captioner(part))) for side in sides)
    return torch.stack([caption_similarity(each, truth) for each in shown])


def _features(sides: list[Tensor], inputs: Inputs) -> Tensor:
    module = weights.load(EFFICIENTNET_B1_V2, inputs.weights, inputs.device)
    extract = Extractor(EFFICIENTNET_B1_V2, module, None, Resize(255, antialias=True), inputs.batch)
    *shown, truth = (extract(side, ["avgpool"])["avgpool"] for side in sides)
    return torch.stack([1 - correlation_distance(each, truth) for each in shown])


COLUMNS = (
    Column("seed-objects", "SEED Object F1"),
    Column("seed-captions", "SEED Cap-Sim"),
    Column("seed-effnet", "SEED EffNet"),
    Column("seed", "SEED"),
)
PLUGIN = Plugin(
    name="seed",
    version=1,
    summary="(Object F1 + caption similarity + 1 - EffNet distance) / 3 (Park et al., ICLR 2026).",
    columns=COLUMNS,
    compute=compute,
    networks=(EFFICIENTNET_B1_V2,),
    models=(DETECTOR, CAPTIONER, SENTENCES),
)
