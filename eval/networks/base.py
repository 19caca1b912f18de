"""What a feature network is: an architecture, its taps, and the file its published weights come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.pictures import IMAGENET_MEAN, IMAGENET_STD, Triple

IMAGENET_TERMS = "BSD-3-Clause (torchvision); trained on ImageNet, whose terms are non-commercial research"


def torch_cache() -> Path:
    """Return the folder into which torch and torchvision download weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


@dataclass(frozen=True)
class Network:
    """A frozen network and the layers that metrics read.

    Picture sizes are not here: protocols feed the same network at different sizes.

    Attributes:
        name: Its own; the constant that holds it is called so, in capitals.
        taps: Names of the layers that `forward` returns, in the architecture's own notation.
        parameters: Number of parameters of the published architecture, heads included.
        weights_file: Name of the state dict in a weights folder.
        source: Where those weights come from, for people.
        build: Makes the published architecture; called under `torch.device("meta")`, so it costs nothing.
        forward: `forward(module, pixels)` with normalised `(B, 3, H, W)` pixels returns `(B, ...)` for every tap.
        mean: Subtracted from each channel of an image in [0, 1].
        std: Divides each channel afterwards.
        unused: Submodules that no tap needs: never held in memory, their weights ignored.
        foreign: Prefixes of further entries that the published file holds and no tap needs.
        prefix: Prefix of the network's own entries in the published file; ignored where the file has none of it.
        shipped: The weights, where they are part of this package.
        url: Where the published file can be fetched; its last part is its name in the cache. Empty where there is none.
        sha256: Of the published file, or the start of it; empty where its publisher names none.
        terms: Licence of the weights, shown before a download.
        cache: The folder into which the usual tools download that file.
        companion: Finds a file of further entries that comes with a dependency and is never random.
    """

    name: str
    taps: tuple[str, ...]
    parameters: int
    weights_file: str
    source: str
    build: Callable[[], nn.Module] = field(repr=False)
    forward: Callable[[nn.Module, Tensor], Mapping[str, Tensor]] = field(repr=False)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    unused: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    prefix: str = ""
    shipped: Path | None = field(default=None, repr=False)
    url: str = ""
    sha256: str = field(default="", repr=False)
    terms: str = field(default=IMAGENET_TERMS, repr=False)
    cache: Callable[[], Path] = field(default=torch_cache, repr=False)
    companion: Callable[[], Path] | None = field(default=None, repr=False)

    @property
    def published_digest(self) -> str:
        """The sha256 of the published file or its start; torchvision writes the first 8 digits into the name."""
        named = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        return self.sha256 or (named.group(1) if named else "")
