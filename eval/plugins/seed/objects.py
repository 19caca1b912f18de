"""Which objects are in a picture, after MM-Grounding-DINO (Zhao et al. 2024), and how well two pictures agree on them.

Shape legend: N images, B images of a batch, C classes, Q queries of the detector, T thresholds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.plugins.seed import pretrained

_NAMES = (
    "person man woman bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie "
    "suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket "
    "bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake "
    "chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)
CLASSES = tuple(_NAMES.split())
"""COCO's 80 classes, with man and woman beside person."""
THRESHOLDS = np.arange(0.05, 0.95, 0.05)
LEAST_AREA = 50.0
"""Square pixels below which a box does not count."""
MOST_DETECTIONS = 300
"""Pairs of a box and a class that are looked at, the most probable ones, as mmdetection keeps them."""


def object_f1(shown: Tensor, truth: Tensor) -> Tensor:
    """F1 of the classes found in a reconstruction against those found in its truth (Park et al. 2026).

    At each threshold a picture has the classes whose best detection reaches it. Recall is averaged over the thresholds
    at which the truth has any class, precision over those at which the reconstruction has any; a side that never has
    one counts 1.

    Args:
        shown: Best score of each class in the reconstructions, `(N, C)`; minus infinity where there is none.
        truth: The same of the truths.

    Returns:
        `(N,)` float64 in [0, 1], higher is better.
    """
    # Python and NumPy compare the detector's float32 scores with thresholds in float64; so does this.
    steps = torch.from_numpy(THRESHOLDS).to(shown.device)[:, None, None]
    found, there = shown.double() >= steps, truth.double() >= steps  # (T, N, C)
    both = (found & there).sum(2).double()
    recall, precision = (_share(both, side.sum(2)) for side in (there, found))
    return torch.where(recall + precision > 0, 2 * recall * precision / (recall + precision), 0.0)


def _share(both: Tensor, count: Tensor) -> Tensor:
    """Mean over thresholds `(T, N)` of both / count where there is anything to count; 1 where there never is."""
    any_there = count > 0
    share = torch.where(any_there, both / count.clamp(min=1), 0.0).sum(0) / any_there.sum(0).clamp(min=1)
    return torch.where(any_there.any(0), share, 1.0)


class ObjectDetector:
    """A grounding detector that is asked for `CLASSES`.

    Args:
        folder: Config, weights as safetensors, image processor and tokenizer.
        device: Where to compute.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.model = pretrained.model("AutoModelForZeroShotObjectDetection", folder, device)
        self.prepare = pretrained.part("AutoImageProcessor", folder)
        tokenizer = pretrained.part("AutoTokenizer", folder)
        text, spans = _prompt()
        self.tokens = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True)
        offsets = self.tokens.pop("offset_mapping")[0].tolist()
        self.classes = _token_shares(offsets, spans).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the best score of each class, `(B, C)` float32, for pictures `(B, 3, H, W)` in [0, 1]."""
        height, width = images.shape[2:]
        pixels = self.prepare(images=(images * 255).round().to(torch.uint8), return_tensors="pt").to(self.device)
        text = {name: value.expand(len(images), -1).to(self.device) for name, value in self.tokens.items()}
        with torch.inference_mode():
            given = self.model(**pixels, **text)
        words = len(self.classes)
        scores = given.logits[..., :words].float().sigmoid() @ self.classes  # (B, Q, C): the mean over a class' tokens
        centre, size = given.pred_boxes.float().split(2, -1)
        low, high = (centre - size / 2).clamp(0, 1), (centre + size / 2).clamp(0, 1)
        areas = (high - low).prod(-1) * height * width
        return _best(scores, areas).cpu()


def _best(scores: Tensor, areas: Tensor) -> Tensor:
    """Return the best score of each class `(B, C)` among the most probable of `(B, Q, C)` with large enough boxes."""
    flat = scores.flatten(1)
    kept = flat.topk(min(MOST_DETECTIONS, flat.shape[1])).indices
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, kept, True).view_as(scores)
    mask &= (areas >= LEAST_AREA)[..., None]
    return scores.masked_fill(~mask, -torch.inf).amax(1)


def _prompt() -> tuple[str, list[tuple[int, int]]]:
    """Return the text that asks for every class, and the place of each class in it."""
    text, spans = "", []
    for name in CLASSES:
        spans.append((len(text), len(text) + len(name)))
        text += f"{name}. "
    return text, spans


def _token_shares(offsets: list[list[int]], spans: list[tuple[int, int]]) -> Tensor:
    """Return `(tokens, C)` weights that take the mean over the tokens of each class' name.

    Raises:
        ValueError: If the tokenizer leaves a class without a token.
    """
    shares = torch.zeros(len(offsets), len(spans))
    for place, (start, end) in enumerate(spans):
        inside = [i for i, (first, last) in enumerate(offsets) if first < last and start <= first and last <= end]
        if not inside:
            raise ValueError(f"the tokenizer gave no token for class {CLASSES[place]!r}")
        shares[inside, place] = 1 / len(inside)
    return shares
