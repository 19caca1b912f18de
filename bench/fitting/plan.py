"""What a fit is, before it runs: a description whose digest is its address.

A trial of a sweep is one fit. The plan says everything that may change its state and nothing that may not, so two
sweeps, recipes or machines that plan the same fit share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.core import options, registry
from bench.core.errors import OptionError, UnknownNameError
from bench.core.identity import digest
from bench.data.splits import Split
from bench.data.stream.rules import Averaging, Normalise
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Stage

Control = Literal["none", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class HeadPlan(HeadSpec):
    """One head of a fit: its spec, and the content digest of its target shards."""

    digest: str


@dataclass(frozen=True)
class FitPlan:
    """One fit.

    Attributes:
        encoder: Name and version of the encoder.
        options: All of its options, defaults filled in.
        heads: Its heads by name.
        subjects: Whose trials it sees.
        shards: Content digest of the trial shards.
        sessions: Sessions it may see, None for all.
        split: The split's name, version and validation share.
        normalise: z-scoring rule of the betas.
        averaging: What a training sample is.
        workers: Data-parallel workers that share it.
        seed: Seed of the fit.
        control: `shuffled` refits on permuted pairs.
        parent: Address of the fit whose state it starts from, or None.
    """

    encoder: tuple[str, int]
    options: dict[str, Any]
    heads: dict[str, HeadPlan]
    subjects: tuple[int, ...]
    shards: str
    sessions: tuple[int, ...] | None
    split: dict[str, Any]
    normalise: Normalise
    seed: int
    control: Control = "none"
    parent: str | None = None
    averaging: Averaging = "single"
    workers: int = 1

    @property
    def id(self) -> str:
        """The fit's content address."""
        return digest(self.description())

    def description(self) -> dict[str, Any]:
        """Return what the address is the digest of."""
        # Version 2: the recorded validation correlation is over single trials, whatever `averaging` is.
        return {"fit": 2, **asdict(self)}


@dataclass(frozen=True)
class DataDigests:
    """Content addresses of what fits read.

    Attributes:
        shards: Content digest of the trial shards, for each dataset name (the sweep's own is "").
        targets: Content digest of the target shards, by `<generator>.<target>`.
    """

    shards: Mapping[str, str]
    targets: Mapping[str, str]


def plan_stage(
    stage: Stage,
    subjects: Sequence[int],
    data: DataDigests,
    seed: int,
    sessions: tuple[int, ...] | None = None,
    control: Control = "none",
    parent: FitPlan | None = None,
) -> FitPlan:
    """Return the plan of one fit of a stage.

    Args:
        stage: The recipe's stage, with the options of one configuration.
        subjects: The subjects of this fit: one, or all for joint stages.
        data: What it reads.
        seed: Seed of the fit.
        sessions: Sessions it may see, None for all.
        control: Whether pairs are permuted.
        parent: The fit it starts from.

    Raises:
        UnknownNameError: If a data set or target of the stage is not among what was opened.
        OptionError: If several workers are to share the fit of an encoder that does not train in batches.
    """
    encoder = registry.load("encoder", stage.encoder)
    # Filled in: a default that is written out is the same fit, and one that changes later is another.
    filled = options.build(encoder.Options, stage.options, f"options of encoder {stage.encoder!r}")
    return FitPlan(
        encoder=(stage.encoder, encoder.version),
        options=asdict(filled),
        heads={
            name: HeadPlan(**asdict(spec), digest=_named(data.targets, spec.target, "target"))
            for name, spec in stage.heads.items()
        },
        subjects=tuple(subjects),
        shards=_named(data.shards, stage.dataset or "", "data set"),
        sessions=sessions,
        split=asdict(Split()),
        normalise=stage.normalise,
        averaging=stage.averaging,
        workers=_shareable(stage, filled),
        seed=seed,
        control=control,
        # The whole ancestry through one address: it is part of the parent's own.
        parent=parent.id if parent else None,
    )


def _shareable(stage: Stage, filled: Any) -> int:  # noqa: ANN401 - any encoder's options
    """Return how many workers share the stage's fits; see `plan_stage`."""
    if stage.workers > 1 and not hasattr(filled, "batch_size"):
        raise OptionError(
            f"stage {stage.name!r}: {stage.workers} workers cannot share a fit of encoder {stage.encoder!r}, which "
            "does not train in batches; leave out `workers`"
        )
    return stage.workers


def _named(digests: Mapping[str, str], name: str, kind: str) -> str:
    """Return a digest by name; see `plan_stage`."""
    if name not in digests:
        raise UnknownNameError(kind, name, digests, "the sweep's data")
    return digests[name]


def plan_recipe(
    recipe: Recipe,
    subjects: Sequence[int],
    data: DataDigests,
    seed: int,
    sessions: tuple[int, ...] | None = None,
    control: Control = "none",
) -> list[list[FitPlan]]:
    """Return the fits of one configuration of a recipe, a list for each stage in order.

    A stage with `subjects: each` has one fit a subject, a joint stage one fit over all, and a stage with `subjects:
    others` one fit for each subject over all the others. A fit starts from its parent stage's fit for the same
    subject, or from the joint one.

    Raises:
        OptionError: If a stage trains on the other subjects and there is only one.
    """
    planned: dict[str, list[tuple[int | None, FitPlan]]] = {}
    for stage in recipe.stages:
        planned[stage.name] = [
            (target, plan_stage(stage, group, data, seed, sessions, control, _parent(stage, target, planned)))
            for target, group in _groups(stage, subjects)
        ]
    return [[plan for _, plan in planned[stage.name]] for stage in recipe.stages]


def _groups(stage: Stage, subjects: Sequence[int]) -> list[tuple[int | None, tuple[int, ...]]]:
    """Return for each fit of a stage the subject it is for (None for all) and the subjects it sees."""
    if stage.subjects == "joint":
        return [(None, tuple(subjects))]
    if stage.subjects == "each":
        return [(subject, (subject,)) for subject in subjects]
    if len(subjects) < 2:
        raise OptionError(f"stage {stage.name!r} trains on the other subjects; there is only {list(subjects)}")
    return [(subject, tuple(other for other in subjects if other != subject)) for subject in subjects]


def _parent(
    stage: Stage, target: int | None, planned: Mapping[str, list[tuple[int | None, FitPlan]]]
) -> FitPlan | None:
    """Return the earlier stage's fit for the same subject, or the joint one.

    Raises:
        OptionError: If there is neither (a joint stage cannot start from a subject's fit).
    """
    if stage.init_from is None:
        return None
    # The same subject's fit or the joint one; a stage has one kind, so at most one matches.
    for earlier, plan in planned[stage.init_from]:
        if earlier in (target, None):
            return plan
    raise OptionError(f"stage {stage.name!r}: no fit of stage {stage.init_from!r} is for all subjects")
