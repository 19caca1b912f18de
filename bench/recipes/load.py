"""Reads recipes: from YAML to typed and checked stages, heads and render nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.core import options
from bench.core.errors import OptionError, UnknownNameError
from bench.recipes.base import Recipe
from bench.recipes.checks import check_recipe
from bench.recipes.parts import HeadSpec, Node, Search, Select, Stage

RECIPES_FOLDER = Path(__file__).resolve().parent


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Return a recipe, by the name of a shipped one or the path of a YAML file, fully checked.

    Raises:
        UnknownNameError: If there is no such recipe, or it has an unknown key, encoder, generator, target or input.
        OptionError: If a value does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_FOLDER / f"{name}.yaml"
    if not path.exists():
        raise UnknownNameError("recipe", name, recipe_names())
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise OptionError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise OptionError(f"{path.name} holds {type(content).__name__}, a mapping is needed")
    recipe = _build({"name": path.stem, **content})
    check_recipe(recipe)
    return recipe


def _build(content: Mapping[str, Any]) -> Recipe:
    """Build the nested dataclasses, so that an unknown key is reported with the place it stands in."""
    where = f"recipe {content['name']!r}"
    parts = dict(content)
    parts["stages"] = tuple(_build_stage(stage, where) for stage in _rows(parts.get("stages", []), f"{where}: stages"))
    render = _mapping(parts.get("render", {}), f"{where}: render")
    defaults = _mapping(parts.get("generators", {}), f"{where}: generators")
    parts["render"] = {n: _build_node(node, defaults, f"{where}: render node {n!r}") for n, node in render.items()}
    if "search" in parts:
        parts["search"] = options.build(Search, parts["search"], f"{where}: search")
    return options.build(Recipe, parts, where)


def _build_node(content: Mapping[str, Any], generators: Mapping[str, Any], where: str) -> Node:
    """Build one render node and its selection."""
    parts = _with_defaults(_mapping(content, where), generators)
    if parts.get("select") is not None:
        parts["select"] = options.build(Select, parts["select"], f"{where}: select")
    return options.build(Node, parts, where)


def _build_stage(content: Mapping[str, Any], where: str) -> Stage:
    """Build one stage and its heads."""
    parts, place = dict(content), f"{where}: stage {content.get('name', 'fit')!r}"
    heads = _mapping(parts.get("heads", {}), f"{place}: heads")
    parts["heads"] = {n: options.build(HeadSpec, head, f"{place}: head {n!r}") for n, head in heads.items()}
    return options.build(Stage, parts, place)


def _rows(value: Any, where: str) -> Sequence[Mapping[str, Any]]:  # noqa: ANN401 - unchecked YAML
    """Return a list of mappings as it came.

    Raises:
        OptionError: If it is anything else.
    """
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise OptionError(f"{where} is a list of mappings, got {value!r}")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:  # noqa: ANN401 - unchecked YAML
    """Return a mapping as it came.

    Raises:
        OptionError: If it is anything else.
    """
    if not isinstance(value, Mapping):
        raise OptionError(f"{where} is a mapping from names, got {value!r}")
    return value


def _with_defaults(node: Mapping[str, Any], generators: Mapping[str, Any]) -> dict[str, Any]:
    """Return a render node as it stands in a recipe's file, with the options that its generator has throughout."""
    given = generators.get(str(node.get("generator")))
    return {**node, "options": {**given, **node.get("options", {})}} if given else dict(node)
