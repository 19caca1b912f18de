"""Reads recipes: from YAML to typed and checked stages, heads and render nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.core import options
from bench.core.errors import UnknownNameError
from bench.recipes.base import Recipe
from bench.recipes.checks import check_recipe

RECIPES_FOLDER = Path(__file__).resolve().parent


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Return a recipe, by the name of a shipped one or the path of a YAML file, fully checked.

    Raises:
        UnknownNameError: If there is no such recipe, or it has an unknown key, encoder, generator, target or input.
        OptionError: If it is not YAML, or a value does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_FOLDER / f"{name}.yaml"
    if not path.exists():
        raise UnknownNameError("recipe", name, recipe_names())
    content = {"name": path.stem, **options.read_yaml(path)}
    recipe = _with_defaults(options.build(Recipe, content, f"recipe {content['name']!r}"))
    check_recipe(recipe)
    return recipe


def _with_defaults(recipe: Recipe) -> Recipe:
    """Return the recipe with the options that its generators have throughout in every render node."""
    defaults = {name: recipe.generators.get(node.generator or "", {}) for name, node in recipe.render.items()}
    render = {name: replace(node, options={**defaults[name], **node.options}) for name, node in recipe.render.items()}
    return replace(recipe, render=render)
