"""The generator contract: frozen networks that make targets from pictures and pictures from latents.

A generator declares what it can encode (`targets`) and what it takes to render (`inputs`). A feature network is a
generator without inputs. Weights are frozen: nothing here trains.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from bench.core.errors import BadDataError, UnknownNameError

RENDER_ONLY: Mapping[str, str] = {"stage": "render"}
"""Metadata of an option that pictures depend on and targets do not."""


@dataclass(frozen=True)
class TargetSpec:
    """One thing a generator makes from a stimulus.

    Attributes:
        shape: Shape of one target.
        dtype: How target shards store it; encoders always receive float32.
        needs: Which parts of a stimulus it is made from.
    """

    shape: tuple[int, ...]
    dtype: Literal["float16", "float32"] = "float32"
    needs: tuple[Literal["image", "captions", "labels"], ...] = ("image",)


@dataclass(frozen=True)
class InputSpec:
    """One thing a generator takes to render.

    Attributes:
        shape: Shape of one input; `(3, H, W)` uint8 for pictures.
        kind: A latent, or a picture (then any generator's output is a legal input).
        oracle: The target that is this input's truth (rendering from it is the oracle control), or None.
        required: Whether rendering needs it; a missing optional input means the generator's null value.
    """

    shape: tuple[int, ...]
    kind: Literal["latent", "picture"] = "latent"
    oracle: str | None = None
    required: bool = True

    def fits(self, values: torch.Tensor) -> bool:
        """Say whether values `(B, ...)` are of this kind and shape; a picture may have any height and width."""
        if self.kind == "picture":
            return values.ndim == 4 and values.shape[1] == 3 and values.dtype == torch.uint8
        return tuple(values.shape[1:]) == self.shape and values.is_floating_point()

    def __str__(self) -> str:
        """What fits, for messages."""
        return "(B, 3, H, W) uint8" if self.kind == "picture" else f"(B, {', '.join(map(str, self.shape))}) of floats"


@dataclass(frozen=True)
class Stimuli:
    """A batch of stimuli to encode.

    Attributes:
        images: `(B, 3, H, W)` uint8, RGB.
        captions: For each image its captions, possibly none.
        labels: For each image its class label, possibly None.
    """

    images: torch.Tensor
    captions: Sequence[Sequence[str]]
    labels: Sequence[str | None]

    def __post_init__(self) -> None:
        n = self.images.shape[0]
        # Checked where a batch is made: a network would take channels-last pictures or floats and give nonsense.
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            shape, dtype = tuple(self.images.shape), self.images.dtype
            raise ValueError(f"images must be (B, 3, H, W) uint8, got {shape} {dtype}")
        if len(self.captions) != n or len(self.labels) != n:
            raise ValueError(f"{n} images, {len(self.captions)} captions, {len(self.labels)} labels")


@dataclass(frozen=True)
class WeightsSize:
    """How large a generator is.

    Attributes:
        parameters: Numbers in its weights.
        bytes: Bytes of its weight files.
    """

    parameters: int
    bytes: int


def safetensors_size(files: Sequence[Path]) -> WeightsSize:
    """Return the size of safetensors files from their headers alone: no weight is read."""
    from safetensors import safe_open

    parameters = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            parameters += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return WeightsSize(parameters, sum(file.stat().st_size for file in files))


class Generator(abc.ABC):
    """A frozen model: targets from stimuli, pictures from latents.

    A module or package in this folder holds one public subclass; its file name is its name in recipes. A picture
    depends on its own inputs and its own seed only: batch size, replica and order change nothing beyond float
    tolerance.
    """

    version: ClassVar[int]
    """Raised by hand whenever the same inputs give another output: part of the identity of targets and images."""

    Options: ClassVar[type]
    """Frozen dataclass of what a recipe may set (steps, strength, guidance)."""

    targets: ClassVar[Mapping[str, TargetSpec]]
    inputs: ClassVar[Mapping[str, InputSpec]] = {}

    trained_on: ClassVar[tuple[str, ...] | None] = None
    """Sets its weights were trained on, by their names in `bench.data.training_sets`: the leakage audit reads them.
    None where they are not known."""

    def __init__(self, options: Any, device: torch.device) -> None:  # noqa: ANN401 - each subclass names its own Options
        """Load the frozen weights onto `device`.

        Raises:
            MissingWeightsError: If the weights are not there; the message says what to fetch and where to put it.
        """
        self.options = options
        self.device = device

    @classmethod
    @abc.abstractmethod
    def weights_digest(cls, options: Any) -> str:  # noqa: ANN401 - see __init__
        """Return the sha256 of the weights these options use: it goes on the record and into identities."""

    @classmethod
    @abc.abstractmethod
    def weights_size(cls, options: Any) -> WeightsSize:  # noqa: ANN401 - see __init__
        """Return how large the weights are that these options use, without loading them: it goes on the record."""

    @abc.abstractmethod
    def encode(self, stimuli: Stimuli, names: Sequence[str], seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Make targets.

        Args:
            stimuli: B stimuli.
            names: Which of `targets`.
            seeds: One a stimulus, for targets that are samples of a posterior.

        Returns:
            For each name `(B, *shape)` on the CPU, in the spec's dtype.
        """

    @classmethod
    def recipe_name(cls) -> str:
        """Return its name in recipes: that of its file or package in this folder, as the registry has it."""
        return cls.__module__.removeprefix("bench.generators.").partition(".")[0].replace("_", "-")

    @classmethod
    def check_targets(cls, names: Sequence[str]) -> None:
        """Raise unless all names are targets of this generator.

        Raises:
            UnknownNameError: If one is not; the nearest is offered.
        """
        for name in names:
            if name not in cls.targets:
                raise UnknownNameError("target", name, cls.targets, f"generator {cls.recipe_name()!r}")

    def check_captions(self, captions: Sequence[Sequence[str]]) -> None:
        """Raise unless every stimulus of a batch has a caption.

        Raises:
            BadDataError: If one has none.
        """
        if without := [place for place, texts in enumerate(captions) if not texts]:
            raise BadDataError(
                f"target 'text' of generator {self.recipe_name()!r} needs captions: {len(without)} of {len(captions)} "
                f"stimuli of a batch have none, the first at place {without[0]}"
            )

    def check_inputs(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> None:
        """Raise unless inputs are what this generator declares, one row a seed.

        Raises:
            UnknownNameError: If there is no such input; the nearest is offered.
            ValueError: If a required input, or any at all, is missing, or a shape, type, number or value cannot be
                right.
        """
        own = self.recipe_name()
        needed = [name for name, spec in self.inputs.items() if spec.required]
        if not inputs or set(needed) - set(inputs):
            raise ValueError(
                f"{own} renders from {', '.join(needed or self.inputs)}; got {', '.join(inputs) or 'none'}"
            )
        for name, values in inputs.items():
            if name not in self.inputs:
                raise UnknownNameError("input", name, self.inputs, f"generator {own!r}")
            if not self.inputs[name].fits(values):
                came = f"{tuple(values.shape)} {values.dtype}"
                raise ValueError(f"{own}: {name} must be {self.inputs[name]}, got {came}")
            if len(values) != len(seeds):
                raise ValueError(f"{own}: {len(values)} inputs {name!r} but {len(seeds)} seeds")
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{own}: {name} holds NaN or infinite values")

    def start_among(self, inputs: Mapping[str, torch.Tensor], starts: Sequence[str]) -> str | None:
        """Return which of the inputs that img2img may start from is given, None where none is.

        Raises:
            ValueError: If several are.
        """
        given = [name for name in starts if name in inputs]
        if len(given) > 1:
            raise ValueError(f"{self.recipe_name()} starts from one of {', '.join(starts)}, got {' and '.join(given)}")
        return given[0] if given else None

    def render(self, inputs: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Make pictures.

        Args:
            inputs: For each input `(B, *shape)`.
            seeds: One a picture; every random number of picture i comes from seed i.

        Returns:
            `(B, 3, H, W)` uint8 on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} is a feature network: it renders nothing")

    def constants(self) -> Mapping[str, torch.Tensor]:
        """Return tensors lent to encoders (a concept bank); none by default."""
        return {}

    def loss(
        self, inputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], seeds: Sequence[int]
    ) -> torch.Tensor:
        """Return a scalar loss, differentiable in `inputs` through the frozen network."""
        raise NotImplementedError(f"{type(self).__name__} lends no loss")

    def trace(
        self,
        inputs: Mapping[str, torch.Tensor],
        layers: Sequence[str],
        steps: Sequence[int],
        seeds: Sequence[int],
    ) -> Mapping[tuple[str, int], torch.Tensor]:
        """Return hidden states while rendering, by (module name, denoising step)."""
        raise NotImplementedError(f"{type(self).__name__} traces nothing")


class MissingWeightsError(FileNotFoundError):
    """Weights that are not on this machine; the message says what to fetch and where to put it."""
