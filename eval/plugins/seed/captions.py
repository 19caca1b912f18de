"""What a picture shows in words (GIT, Wang et al. 2022), and how near two sentences are (Reimers & Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eval.plugins.seed import pretrained

MOST_WORDS = 50
"""Tokens of a caption."""
LONGEST = 256
"""Tokens of a sentence that all-MiniLM-L6-v2 looks at."""


def caption_similarity(shown: Tensor, truth: Tensor) -> Tensor:
    """Return the cosine of each pair of sentence embeddings `(N, D)`, `(N,)` float64, higher is better."""
    return functional.cosine_similarity(shown.double(), truth.double(), dim=1)


class Captioner:
    """Writes a sentence for each picture.

    Args:
        folder: Config, weights as safetensors, image processor and tokenizer.
        device: Where to compute.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.model: Any = pretrained.model("AutoModelForCausalLM", folder, device)
        self.prepare = pretrained.part("AutoImageProcessor", folder)
        self.tokenizer = pretrained.part("AutoTokenizer", folder)

    def __call__(self, images: Tensor) -> list[str]:
        """Return a caption for each picture `(B, 3, H, W)` in [0, 1]."""
        pixels = self.prepare(images=(images * 255).round().to(torch.uint8), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            written = self.model.generate(**pixels, max_new_tokens=MOST_WORDS)
        return list(self.tokenizer.batch_decode(written, skip_special_tokens=True))


class Sentences:
    """Turns sentences into vectors: the mean of the last hidden states of their tokens, of unit length.

    Args:
        folder: Config, weights as safetensors, and tokenizer.
        device: Where to compute.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.model = pretrained.model("AutoModel", folder, device)
        self.tokenizer = pretrained.part("AutoTokenizer", folder)

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Return `(B, D)` float32 on the CPU."""
        tokens = self.tokenizer(
            list(sentences), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).float().cpu()
