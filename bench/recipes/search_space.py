"""What a recipe's search may vary: the options of its stages' encoders, and the stages' own keys in `SEARCHED_KEYS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.core import options, registry
from bench.core.errors import OptionError, UnknownNameError
from bench.recipes.parts import SEARCHED_KEYS, Stage

if TYPE_CHECKING:
    from bench.recipes.base import Recipe


def check(recipe: Recipe) -> None:
    """Compare a recipe's search space with what its stages have.

    Raises:
        UnknownNameError: If there is no such stage, or neither an option of its encoder nor a key of that name.
        OptionError: If a value does not fit a key.
    """
    for name, spec in recipe.search.space.items():
        stage_name, _, option = name.partition(".")
        stage = recipe.stage(stage_name)
        known = registry.load("encoder", stage.encoder).Options.__dataclass_fields__
        if option in SEARCHED_KEYS:
            _check_values(stage, option, spec, f"search space of {name!r}")
        elif option not in known:
            raise UnknownNameError("option", option, [*known, *SEARCHED_KEYS], f"search space of {name!r}")


def _check_values(stage: Stage, key: str, spec: Mapping[str, Sequence[Any]], where: str) -> None:
    """Refuse values that a stage's key cannot have; see `check`."""
    if list(spec) != ["choice"]:
        raise OptionError(f"{where}: {{choice: [...]}} is needed, got {dict(spec)}")
    for value in spec["choice"]:
        # Encoder options are checked when a fit is planned; a stage's keys are not, so a wrong one would be streamed.
        options.build(Stage, {"encoder": stage.encoder, key: value}, where)
