"""Models of transformers from a folder on this machine: safetensors only, and the hub is never asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def part(kind: str, folder: Path, **options: bool) -> Any:  # noqa: ANN401 - these classes share no type
    """Return the image processor or tokenizer of a folder, by the name of transformers' class."""
    import transformers  # here: it takes seconds, and who lists plug-ins needs none of it

    return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)


def model(kind: str, folder: Path, device: torch.device) -> nn.Module:
    """Return the model of a folder, by the name of transformers' class, on a device and ready for inference."""
    loaded: nn.Module = part(kind, folder, use_safetensors=True)
    return loaded.to(device).eval()
