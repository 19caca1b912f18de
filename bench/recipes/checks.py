"""Whether what a recipe names exists and fits: encoders, options, generators, targets, inputs, searched keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.core import options, registry
from bench.core.errors import OptionError, UnknownNameError
from bench.recipes import post_steps
from bench.recipes.base import Recipe
from bench.recipes.parts import SEARCHED_KEYS, HeadSpec, Node, Select, Stage


def check_recipe(recipe: Recipe) -> None:
    """Compare a recipe with the encoders and generators that are there.

    Raises:
        UnknownNameError: If an encoder, option, generator, target, input or searched option does not exist.
        OptionError: If an option's value does not fit, a slice leaves its target, a generator's required input is
            not fed, a head is blended or selected from as if it were a picture, or there are no samples to select.
    """
    for stage in recipe.stages:
        encoder = registry.load("encoder", stage.encoder)
        options.build(encoder.Options, stage.options, f"options of encoder {stage.encoder!r}")
        for head in stage.heads.values():
            _check_head(head)
    _check_generators(recipe)
    for name in recipe.post:
        post_steps.step(name)
    for name, node in recipe.render_order():
        if node.generator is not None:
            _check_node(node, node.generator)
        elif node.select is not None:
            _check_select(recipe, name, node.select)
        elif latents := sorted(set(node.blend or {}) - set(recipe.render)):
            raise OptionError(f"render node {name!r} blends {latents}: heads, not pictures of earlier nodes")
    _check_search(recipe)


def _check_select(recipe: Recipe, name: str, select: Select) -> None:
    """Compare a selection with the recipe's heads, nodes and generators; see `check_recipe`."""
    if select.pictures not in recipe.render:
        raise OptionError(f"render node {name!r} selects from {select.pictures!r}: a head, not pictures of a node")
    if select.head is not None and select.head not in recipe.stages[-1].heads:
        raise OptionError(f"render node {name!r} compares with {select.head!r}: pictures, not a predicted head")
    if recipe.samples < 2:
        raise OptionError(f"render node {name!r} selects among samples: `samples` is {recipe.samples}, 2 are needed")
    head = HeadSpec(select.target) if select.target is not None else recipe.stages[-1].heads[select.head or ""]
    _check_head(head)
    needs = registry.load("generator", head.generator).targets[head.target_name].needs
    if needs != ("image",):
        raise OptionError(f"render node {name!r} cannot encode samples as {head.target!r}: it needs {', '.join(needs)}")


def _check_head(head: HeadSpec) -> None:
    """Compare a head with its generator; see `check_recipe`."""
    targets = registry.load("generator", head.generator).targets
    if head.target_name not in targets:
        raise UnknownNameError("target", head.target_name, targets, f"generator {head.generator!r}")
    shape = targets[head.target_name].shape
    if head.take is not None and head.take[1] > shape[0]:
        raise OptionError(f"take {list(head.take)} leaves target {head.target!r} of shape {shape}")


def _check_node(node: Node, name: str) -> None:
    """Compare a generator node with its generator; see `check_recipe`."""
    generator = registry.load("generator", name)
    options.build(generator.Options, node.options, f"options of generator {name!r}")
    for key in node.inputs:
        if key not in generator.inputs:
            raise UnknownNameError("input", key, generator.inputs, f"generator {name!r}")
    for key, spec in generator.inputs.items():
        if spec.required and key not in node.inputs:
            raise OptionError(f"generator {name!r} needs input {key!r}; the node gives {sorted(node.inputs)}")


def _check_generators(recipe: Recipe) -> None:
    """Compare a recipe's `generators` with what it uses and with their options."""
    used = {target.partition(".")[0] for target in recipe.targets}
    used |= {node.generator for node in recipe.render.values() if node.generator}
    for name, given in recipe.generators.items():
        if name not in used:
            raise UnknownNameError("generator", name, used, f"generators of recipe {recipe.name!r}")
        options.build(registry.load("generator", name).Options, given, f"options of generator {name!r}")


def _check_search(recipe: Recipe) -> None:
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
    """Refuse values that a stage's key cannot have; see `_check_search`."""
    if list(spec) != ["choice"]:
        raise OptionError(f"{where}: {{choice: [...]}} is needed, got {dict(spec)}")
    for value in spec["choice"]:
        # Encoder options are checked when a fit is planned; a stage's keys are not, so a wrong one would be streamed.
        options.build(Stage, {"encoder": stage.encoder, key: value}, where)
