"""Which generators a recipe uses, under which options, and whether their weights are there.

A recipe's `generators` sets options of a generator wherever the recipe uses it: for the targets of its heads and in
every render node, whose own options come on top.

    generators:
      stable-diffusion: {model: v1.5, precision: bfloat16}
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.core.errors import OptionError
from bench.generators.choice import GeneratorChoice
from bench.recipes.base import Recipe


def of_targets(recipes: Iterable[Recipe]) -> dict[str, GeneratorChoice]:
    """Return the generators that make the recipes' targets, by name.

    Raises:
        OptionError: If two recipes want targets of one name that are not the same.
    """
    found: dict[str, tuple[str, GeneratorChoice]] = {}
    for recipe in recipes:
        for name in {target.partition(".")[0] for target in recipe.targets}:
            chosen = GeneratorChoice(name, recipe.generators.get(name, {}))
            first, other = found.setdefault(name, (recipe.name, chosen))
            if other.identity(render=False) != chosen.identity(render=False):
                raise OptionError(
                    f"recipes {first!r} and {recipe.name!r} set options of generator {name!r} under which its targets "
                    "differ; run them in sweeps of their own"
                )
    return {name: chosen for name, (_, chosen) in found.items()}


def of_render(recipe: Recipe) -> list[GeneratorChoice]:
    """Return the generators of a recipe's render graph, one a node."""
    return [GeneratorChoice(node.generator, node.options) for node in recipe.render.values() if node.generator]


def look_for_weights(recipes: Iterable[Recipe]) -> None:
    """Look for the weights of every generator of the recipes: what is missing is found before anything is computed.

    Raises:
        MissingWeightsError: If some are not on this machine.
        OptionError: If two recipes want targets of one name that are not the same.
    """
    recipes = list(recipes)
    of_targets(recipes)  # compares identities, which the digests of weights are part of
    for recipe in recipes:
        for chosen in of_render(recipe):
            chosen.kind.weights_digest(chosen.options)


def untrained(recipe: Recipe) -> bool:
    """Say whether a generator behind a recipe's targets or pictures has random weights: such rows are never ranked."""
    chosen = [*of_targets([recipe]).values(), *of_render(recipe)]
    return any(each.kind.weights_digest(each.options).startswith("untrained") for each in chosen)
