"""Configurations of a search, drawn before anything runs by a seeded generator: a rerun draws the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ray import tune

from bench.core.errors import OptionError
from bench.recipes.parts import Search


def configurations(search: Search, seed: int) -> list[dict[str, Any]]:
    """Return the configurations of a search: the recipe's own values (an empty change) first, then random draws.

    Args:
        search: The recipe's search.
        seed: Same seed, same draws.

    Raises:
        OptionError: If a distribution is unknown or its bounds do not fit.
    """
    # Not NumPy's newer generator: Tune's domains draw from this kind.
    rng = np.random.RandomState(seed)
    # Sorted, so that the order of a recipe's lines changes no draw.
    domains = {key: _domain(key, spec) for key, spec in sorted(search.space.items())}
    drawn: list[dict[str, Any]] = [{}]
    if not domains:
        return drawn
    # One generator for all configurations: more trials begin with the fewer.
    for _ in range(search.trials - 1):
        drawn.append({key: domain.sample(random_state=rng) for key, domain in domains.items()})
    return drawn


def _domain(key: str, spec: Mapping[str, list[Any]]) -> Any:  # noqa: ANN401 - one of Tune's domains
    """Return Tune's domain of a distribution written in a recipe.

    Raises:
        OptionError: If it is not one of the known ones with the right bounds.
    """
    makers: dict[str, Callable[..., Any]] = {
        "choice": lambda *values: tune.choice(list(values)),
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": tune.randint,
    }
    if len(spec) != 1 or next(iter(spec)) not in makers:
        raise OptionError(f"search space of {key!r}: one of {sorted(makers)} is needed, got {dict(spec)}")
    kind, bounds = next(iter(spec.items()))
    if kind != "choice" and (len(bounds) != 2 or not bounds[0] < bounds[1]):
        raise OptionError(f"search space of {key!r}: {kind} needs [low, high] with low < high, got {bounds}")
    if not bounds or (kind == "loguniform" and bounds[0] <= 0):
        needed = "at least one value" if kind == "choice" else "a low bound above 0"
        raise OptionError(f"search space of {key!r}: {kind} needs {needed}, got {bounds}")
    return makers[kind](*bounds)
