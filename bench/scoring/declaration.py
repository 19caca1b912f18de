"""What a row declares: steps beyond one picture a stimulus, and what makers of outside pictures say of them.

reconbench score --declare selection=truth samples=16 checkpoint=test images=coco-train2017,laion-2b-en ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from bench.core import options
from bench.core.console import pairs
from bench.core.errors import OptionError
from bench.data import training_sets
from bench.records.parts import Step

_LISTS = ("responses", "images")
NOTHING = "none"


@dataclass(frozen=True)
class Declaration:
    """What the makers of pictures say of them; None: they do not say.

    Attributes:
        samples: Samples that were drawn for each picture shown.
        selection: How one of them was chosen: not at all, by the brain's own prediction, or by the true picture.
        blend: Whether pictures were blended, for example with a blurry reconstruction.
        checkpoint: The split by which training was stopped or a checkpoint chosen.
        statistics: The split whose statistics standardised betas and predictions.
        responses: Sets of brain responses the encoder was trained on besides the training split, see
            `bench.data.training_sets`.
        images: Image sets that the generator and other frozen models were trained on.
        test_images_removed: Whether test images were taken out of those sets before.
    """

    samples: int | None = None
    selection: Literal["none", "brain", "truth"] | None = None
    blend: bool | None = None
    checkpoint: Literal["train", "validation", "test"] | None = None
    statistics: Literal["train", "test"] | None = None
    responses: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = None
    test_images_removed: bool = False

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise OptionError(f"--declare samples={self.samples}: at least 1 is needed")
        for name in _LISTS:
            training_sets.check(getattr(self, name) or (), f"--declare {name}")

    @property
    def silent(self) -> list[str]:
        """Names of what was not declared."""
        return [f.name for f in fields(self) if getattr(self, f.name) is None]

    @property
    def open_reasons(self) -> list[str]:
        """Why the row belongs to the open division, by its makers' own words."""
        reasons = []
        if self.selection in ("brain", "truth"):
            of = f" of {self.samples}" if self.samples else ""
            reasons.append(f"declared: one{of} samples selected by the {self.selection}")
        if self.blend:
            reasons.append("declared: pictures are blended")
        if self.statistics == "test":
            reasons.append("declared: statistics of the test set are used")
        return reasons

    @property
    def steps(self) -> tuple[Step, ...]:
        """The declaration as it stands on a record; nothing where nothing was declared."""
        said = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        return (Step("declared", "by the pictures' maker", said),) if said else ()


def parse(texts: Sequence[str]) -> Declaration:
    """Return a declaration from a command line's `NAME=VALUE` texts; lists have commas, `none` is an empty one.

    Raises:
        UnknownNameError: If there is no such field or training set.
        OptionError: If a text is not of that form, a field stands there twice, or a value does not fit.
    """
    known = ", ".join(f.name for f in fields(Declaration))
    given: dict[str, Any] = dict(pairs(texts, "--declare", f"NAME=VALUE with NAME one of {known}"))
    for name in given.keys() & set(_LISTS):
        given[name] = () if given[name] == NOTHING else tuple(given[name].split(","))
    return options.build(Declaration, given, "--declare")
