"""Weight files that ship with the package: checked, measured, and loaded as frozen networks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from bench.generators._weights.frozen import frozen, load_state, pretrained, read_state
from bench.generators.base import MissingWeightsError, WeightsSize, safetensors_size


@dataclass(frozen=True)
class WeightFiles:
    """The weights folder of a shipped generator.

    Attributes:
        generator: Whose they are, for messages.
        folder: Where they lie.
        names: The files, relative to it, sorted.
    """

    generator: str
    folder: Path
    names: tuple[str, ...]

    def check(self) -> None:
        """Check that all files are there.

        Raises:
            MissingWeightsError: If a file is not; the message says how to get it.
        """
        # The files ship with the package; but a wheel built without its data has none of them.
        missing = [name for name in self.names if not (self.folder / name).is_file()]
        if missing:
            package = f"bench.generators.{self.generator.replace('-', '_')}"
            raise MissingWeightsError(
                f"{self.generator}: no {missing[0]} in {self.folder}. The weights ship with the package; reinstall it, "
                f"or train them with: python -m {package}.train --out {self.folder}"
            )

    def digest(self) -> str:
        """Return the sha256 over the files, names included.

        Raises:
            MissingWeightsError: If a file is not there.
        """
        self.check()
        total = hashlib.sha256()
        for name in self.names:
            total.update(name.encode() + b"\0" + hashlib.sha256((self.folder / name).read_bytes()).digest())
        return total.hexdigest()

    def size(self) -> WeightsSize:
        """Return how large the networks are.

        Raises:
            MissingWeightsError: If a file is not there.
        """
        self.check()
        return safetensors_size([self.folder / name for name in self.names if name.endswith(".safetensors")])

    def load(self, kind: Any, name: str, device: torch.device) -> Any:  # noqa: ANN401 - a library's class and network
        """Return the frozen network of a diffusers or transformers class from its folder, in float32.

        Raises:
            MissingWeightsError: If a file is not there.
            CorruptFileError: If the folder cannot be read, or holds the weights of another network.
        """
        self.check()
        return pretrained(kind, self.folder / name, True, torch.float32, device)

    def fill(self, network: torch.nn.Module, name: str, device: torch.device) -> Any:  # noqa: ANN401 - see load
        """Return a network with the weights of a file, frozen, in float32.

        Raises:
            MissingWeightsError: If a file is not there.
            CorruptFileError: If the file cannot be read, or holds the weights of another network.
        """
        self.check()
        path = self.folder / name
        # Weights are stored in float16 and widened here: copying into the network casts them.
        load_state(network, cast("Mapping[str, torch.Tensor]", read_state(path)), path)
        return frozen(network, torch.float32, device)
