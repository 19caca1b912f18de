"""The parts of a recipe: heads, training stages, render nodes, and the search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bench.errors import OptionError


@dataclass(frozen=True)
class HeadSpec:
    """One target of a stage.

    Attributes:
        target: `<generator>.<target>`.
        roi: ROI expression over the voxel set ("streams:early | prf-visualrois:hV4"), or None for all voxels.
        take: First and one-past-last index on the target's first axis (`text[:15]` is `[0, 15]`), or None for all.
    """

    target: str
    roi: str | None = None
    take: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.target.count(".") != 1:
            raise OptionError(f"a head's target is <generator>.<target>, got {self.target!r}")
        if self.take is not None and not 0 <= self.take[0] < self.take[1]:
            raise OptionError(f"take is [first, one past the last], got {list(self.take)} for {self.target!r}")

    @property
    def generator(self) -> str:
        """The generator that makes the target."""
        return self.target.split(".")[0]

    @property
    def target_name(self) -> str:
        """The target's name within its generator."""
        return self.target.split(".")[1]


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        encoder: Name of a file in `encoders/`.
        name: The stage's name in search spaces and `init_from`.
        options: Fields of the encoder's `Options`.
        heads: What it predicts, by head name. Empty for self-supervised stages.
        subjects: One fit a subject, one fit over all subjects, or for each subject one fit over all the others.
        dataset: Name of a data set among those the sweep opened, None for its own.
        normalise: z-scoring of betas, always with statistics of training trials.
        init_from: Name of the earlier stage whose state this one starts from.
        gpus: Share of a GPU a fit takes where the cluster has GPUs; fits run on CPUs where it has none.
    """

    encoder: str
    name: str = "fit"
    options: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, HeadSpec] = field(default_factory=dict)
    subjects: Literal["each", "joint", "others"] = "each"
    dataset: str | None = None
    normalise: Literal["session", "subject", "none"] = "session"
    init_from: str | None = None
    gpus: float = 0.25


@dataclass(frozen=True)
class Node:
    """One node of the render graph: a generator, or a blend of pictures.

    Attributes:
        generator: Name of a generator, for generator nodes.
        options: Fields of the generator's `Options`.
        inputs: For each of the generator's inputs the head or the earlier node that feeds it.
        blend: Weights of earlier nodes' pictures, for blend nodes. Declared, so that the row is in the open division.
    """

    generator: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    blend: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if (self.generator is None) == (self.blend is None):
            raise OptionError("a render node has either a generator or a blend")
        if self.blend is not None and (self.inputs or self.options):
            raise OptionError("a blend node takes the weights of earlier nodes only, no inputs and no options")


@dataclass(frozen=True)
class Search:
    """How configurations are tried.

    Attributes:
        space: For `stage.option` one of `{choice: [...]}`, `{uniform: [lo, hi]}`, `{loguniform: [lo, hi]}`,
            `{randint: [lo, hi]}`.
        trials: Configurations drawn; the first is the recipe's own values.
        scheduler: `asha` stops poor fits early (encoders that report once are never stopped).
        grace: Reports before a fit may be stopped.
        reduction: A rung keeps one in this many.
    """

    space: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    trials: int = 1
    scheduler: Literal["asha", "none"] = "asha"
    grace: int = 2
    reduction: int = 3

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise OptionError(f"search.trials is {self.trials}, at least 1 is needed")
