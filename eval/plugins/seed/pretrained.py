"""Models of transformers from a folder on this machine: safetensors only, and the hub is never asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def part(kind: str, folder: Path) -> Any:
    """Return the image processor or tokenizer of a folder, by the name of transformers' class."""
    return _kind(kind).from_pretrained(folder, local_files_only=True)


def model(kind: str, folder: Path, device: torch.device) -> Any:
    """Return the model of a folder, by the name of transformers' class, on a device and ready for inference."""
    return _kind(kind).from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()


def _kind(name: str) -> Any:
    import transformers  # here: it takes seconds, and who lists plug-ins needs none of it

    return getattr(transformers, name)
