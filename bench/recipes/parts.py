"""The parts of a recipe: heads, training stages, render nodes, and the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.core.errors import OptionError
from bench.data import training_sets
from bench.data.stream.rules import Averaging, Normalise

SEARCHED_KEYS = ("averaging",)
"""Keys of a stage that a search may vary besides its encoder's options.

Trials are z-scored once for all configurations of a recipe and averaged as they are streamed; so `normalise`, which
would need a copy of them for each of its values, is not among these."""


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
        normalise: Rule of z-scoring betas (`bench.data.stream.rules`); one that uses test trials marks the row.
        averaging: What a training sample is: each trial, the mean of a stimulus' trials, or one of them an epoch. Fits
            are selected by their correlation over single validation trials, whatever they were trained on.
        init_from: Name of the earlier stage whose state this one starts from.
        pretrained_on: Sets behind outside weights that the stage starts from (`bench.data.training_sets`); none for
            encoders that start from nothing.
        test_images_removed: Whether test images were taken out of `dataset` and of those sets before.
        gpus: Share of a GPU a fit takes where the cluster has GPUs; fits run on CPUs where it has none.
        workers: Processes that share a fit, each with its own trials of every epoch; a step averages their gradients,
            so `batch_size` counts trials a step and worker. Where there are GPUs, each of several takes a whole one.
    """

    encoder: str
    name: str = "fit"
    options: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, HeadSpec] = field(default_factory=dict, metadata={"each": "head"})
    subjects: Literal["each", "joint", "others"] = "each"
    dataset: str | None = None
    normalise: Normalise = "session"
    averaging: Averaging = "single"
    init_from: str | None = None
    pretrained_on: tuple[str, ...] = ()
    test_images_removed: bool = False
    gpus: float = 0.25
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise OptionError(f"stage {self.name!r}: workers is {self.workers}; at least one fits")
        training_sets.check(self.pretrained_on, f"stage {self.name!r}: pretrained_on")

    def changed(self, values: Mapping[str, Any]) -> Stage:
        """Return the stage with some of its encoder's options, or of its own keys that a search may vary, changed."""
        keys = {name: value for name, value in values.items() if name in SEARCHED_KEYS}
        chosen = {name: value for name, value in values.items() if name not in SEARCHED_KEYS}
        return replace(self, **keys, options={**self.options, **chosen})


@dataclass(frozen=True)
class Select:
    """Chooses one of a picture's samples. Declared, so that the row is in the open division.

    A sample is encoded by a generator's target and compared with a reference in that space:

    - `brain`: what the stage predicts for `head`, as MindEye1 picks by its brain-predicted CLIP embedding;
    - `truth`: the true picture's own `target`, as MindBridge picks by CLIP cosine: an oracle, shown but never ranked.

    Attributes:
        pictures: The earlier node whose samples are chosen from.
        by: What samples are compared with.
        head: For `brain`, the head that is compared.
        target: For `truth`, the space as `<generator>.<target>`.
        similarity: Of two flattened targets: cosine, or Pearson's correlation.
    """

    pictures: str
    by: Literal["truth", "brain"]
    head: str | None = None
    target: str | None = None
    similarity: Literal["cosine", "correlation"] = "cosine"

    def __post_init__(self) -> None:
        if self.by == "brain" and (self.head is None or self.target is not None):
            raise OptionError("select by brain names the predicted `head` it compares with, and no target")
        if self.by == "truth" and (self.target is None or self.head is not None):
            raise OptionError("select by truth names the `target` it compares in, <generator>.<target>, and no head")
        if self.target is not None and self.target.count(".") != 1:
            raise OptionError(f"select by truth: a target is <generator>.<target>, got {self.target!r}")


@dataclass(frozen=True)
class Node:
    """One node of the render graph: a generator, a blend of pictures, or a selection among samples.

    Attributes:
        generator: Name of a generator, for generator nodes.
        options: Fields of the generator's `Options`.
        inputs: For each of the generator's inputs the head or the earlier node that feeds it.
        blend: Weights of earlier nodes' pictures, for blend nodes. Declared, so that the row is in the open division.
        select: How one of the samples is chosen, for selecting nodes.
    """

    generator: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    blend: dict[str, float] | None = None
    select: Select | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.generator, self.blend, self.select)) != 1:
            raise OptionError("a render node has either a generator or a blend or a select")
        if self.generator is None and (self.inputs or self.options):
            kind, takes = ("blend", "the weights of earlier nodes") if self.blend else ("select", "an earlier node")
            raise OptionError(f"a {kind} node takes {takes} only, no inputs and no options")

    @property
    def feeders(self) -> set[str]:
        """The heads and nodes that feed it."""
        selected = (
            {self.select.pictures} | ({self.select.head} if self.select.head else set()) if self.select else set()
        )
        return set(self.inputs.values()) | set(self.blend or {}) | selected


@dataclass(frozen=True)
class Search:
    """How configurations are tried.

    Attributes:
        space: For `stage.option` (or `stage.averaging`) one of `{choice: [...]}`, `{uniform: [lo, hi]}`,
            `{loguniform: [lo, hi]}`, `{randint: [lo, hi]}`.
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
