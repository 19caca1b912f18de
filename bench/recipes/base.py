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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.core.errors import OptionError, UnknownNameError
from bench.recipes.parts import Node, Search, Stage


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
    stages: tuple[Stage, ...] = field(metadata={"each": "stage"})
    render: dict[str, Node] = field(metadata={"each": "render node"})
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
