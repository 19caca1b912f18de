"""Recipes: one YAML file a published system, typed and checked before anything runs.

A recipe says what is trained on which trials (`stages`), how repeats of a test picture are combined, which named steps
follow the prediction (`post`), and how predictions become pictures (`render`, a small graph of generators). Its search
space names options of its stages' encoders, and `averaging`. Unknown keys are errors that offer the nearest.

    name: tiny-ridge
    stages:
      - name: fit
        encoder: ridge
        heads:
          latent: {target: tiny-diffusion.latent}
    render:
      out: {generator: tiny-diffusion, inputs: {latent: latent}}
    search:
      trials: 4
      space:
        fit.alpha: {loguniform: [1.0, 1.0e+5]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from bench.core import options, registry
from bench.core.errors import OptionError, UnknownNameError
from bench.recipes import frozen_models, search_space
from bench.recipes import post_steps as post
from bench.recipes.parts import HeadSpec, Node, Search, Select, Stage
from bench.scoring import declaration

__all__ = ["HeadSpec", "Node", "Recipe", "Search", "Select", "Stage", "check", "load", "names", "with_options"]

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """A system from betas to pictures.

    Attributes:
        name: Its row on the leaderboard; the file's name.
        title: A line for people.
        source: Paper or code it follows.
        stages: Training stages in order; predictions come from the last.
        repeats: Showings of a test picture: betas averaged before prediction, predictions averaged, or each alone.
        post: Named steps between prediction and rendering (`bench.recipes.post_steps.STEPS`).
        render: The render graph; its node `out` gives the pictures.
        samples: Pictures a test picture, each with its own seed.
        search: What is tried.
        generators: Options of generators wherever the recipe uses them (`bench.recipes.frozen_models`).
    """

    name: str
    stages: tuple[Stage, ...]
    render: dict[str, Node]
    title: str = ""
    source: str = ""
    repeats: Literal["mean-before", "mean-after", "each"] = "mean-before"
    post: tuple[str, ...] = ()
    samples: int = 1
    search: Search = field(default_factory=Search)
    generators: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            raise OptionError(f"recipe {self.name!r} has no stages")
        if "out" not in self.render:
            raise OptionError(f"recipe {self.name!r}: the render graph has no node 'out', it has {sorted(self.render)}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise OptionError(f"recipe {self.name!r}: two stages have one name: {names}")
        for place, stage in enumerate(self.stages):
            if stage.init_from is not None and stage.init_from not in names[:place]:
                raise UnknownNameError("earlier stage", stage.init_from, names[:place], f"stage {stage.name!r}")

    def stage(self, name: str) -> Stage:
        """Return the stage of a name.

        Raises:
            UnknownNameError: If there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UnknownNameError("stage", name, [s.name for s in self.stages], f"recipe {self.name!r}")

    @property
    def open_reasons(self) -> list[str]:
        """Why the recipe belongs to the open division; empty for closed ones."""
        return declaration.open_reasons_of(self)

    @property
    def selects_by_truth(self) -> bool:
        """Whether samples are chosen by the true picture: an oracle, which leads no board and bounds no other row."""
        return any(node.select.by == "truth" for node in self.render.values() if node.select)

    @property
    def targets(self) -> list[str]:
        """Targets `<generator>.<target>` whose true values the recipe needs: of its heads and its selections."""
        heads = {head.target for stage in self.stages for head in stage.heads.values()}
        return sorted(
            heads | {node.select.target for node in self.render.values() if node.select and node.select.target}
        )

    def render_order(self) -> Iterator[tuple[str, Node]]:
        """Yield the nodes of the render graph, each after the nodes that feed it.

        Raises:
            UnknownNameError: If a node is fed by something that is neither a head nor a node.
            OptionError: If nodes feed each other in a circle, or a head and a node have one name.
        """
        heads, done = set(self.stages[-1].heads), set[str]()
        if both := sorted(heads & set(self.render)):
            raise OptionError(f"recipe {self.name!r}: {both} name both heads and render nodes")
        while len(done) < len(self.render):
            ready = [n for n in self.render if n not in done and self.render[n].feeders <= heads | done]
            if not ready:
                waiting = sorted(set(self.render) - done)
                for feeder in sorted(set().union(*(self.render[n].feeders for n in waiting))):
                    if feeder not in heads and feeder not in self.render:
                        raise UnknownNameError(
                            "head or node", feeder, heads | set(self.render), f"render of {self.name!r}"
                        )
                raise OptionError(f"recipe {self.name!r}: render nodes {waiting} feed each other in a circle")
            for name in ready:
                done.add(name)
                yield name, self.render[name]


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Recipe:
    """Return a recipe, by the name of a shipped one or the path of a YAML file, fully checked.

    Raises:
        UnknownNameError: If there is no such recipe, or it has an unknown key, encoder, generator, target or input.
        OptionError: If a value does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists():
        raise UnknownNameError("recipe", name, names())
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise OptionError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise OptionError(f"{path.name} holds {type(content).__name__}, a mapping is needed")
    recipe = _build({"name": path.stem, **content})
    check(recipe)
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
    parts = frozen_models.with_defaults(_mapping(content, where), generators)
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


def check(recipe: Recipe) -> None:
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
    frozen_models.check(recipe)
    for name in recipe.post:
        post.step(name)
    for name, node in recipe.render_order():
        if node.generator is not None:
            _check_node(node, node.generator)
        elif node.select is not None:
            _check_select(recipe, name, node.select)
        elif latents := sorted(set(node.blend or {}) - set(recipe.render)):
            raise OptionError(f"render node {name!r} blends {latents}: heads, not pictures of earlier nodes")
    search_space.check(recipe)


def _check_select(recipe: Recipe, name: str, select: Select) -> None:
    """Compare a selection with the recipe's heads, nodes and generators; see `check`."""
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
    """Compare a head with its generator; see `check`."""
    targets = registry.load("generator", head.generator).targets
    if head.target_name not in targets:
        raise UnknownNameError("target", head.target_name, targets, f"generator {head.generator!r}")
    shape = targets[head.target_name].shape
    if head.take is not None and head.take[1] > shape[0]:
        raise OptionError(f"take {list(head.take)} leaves target {head.target!r} of shape {shape}")


def _check_node(node: Node, name: str) -> None:
    """Compare a generator node with its generator; see `check`."""
    generator = registry.load("generator", name)
    options.build(generator.Options, node.options, f"options of generator {name!r}")
    for key in node.inputs:
        if key not in generator.inputs:
            raise UnknownNameError("input", key, generator.inputs, f"generator {name!r}")
    for key, spec in generator.inputs.items():
        if spec.required and key not in node.inputs:
            raise OptionError(f"generator {name!r} needs input {key!r}; the node gives {sorted(node.inputs)}")


def with_options(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some encoder options, or keys of stages that a search may vary, changed.

    Args:
        recipe: The recipe.
        values: New values by `stage.option`.

    Raises:
        UnknownNameError: If the recipe has no such stage.
    """
    for key in values:
        recipe.stage(key.partition(".")[0])
    stages = []
    for stage in recipe.stages:
        mine = {k.partition(".")[2]: v for k, v in values.items() if k.partition(".")[0] == stage.name}
        stages.append(stage.changed(mine))
    return replace(recipe, stages=tuple(stages))
