"""Which division a recipe belongs to: what it does beyond rendering one picture a stimulus, and why that opens it."""

from __future__ import annotations

from dataclasses import asdict

from bench.data.stream.rules import leaks
from bench.recipes import post_steps
from bench.recipes.base import Recipe
from bench.records.parts import Step


def steps_of(recipe: Recipe) -> tuple[Step, ...]:
    """Return what a recipe does to predictions and pictures beyond rendering them once."""
    found = [Step("post", name, {"version": post_steps.step(name).version}) for name in recipe.post]
    for name, node in recipe.render.items():
        if node.blend:
            found.append(Step("blend", name, {"weights": dict(node.blend)}))
        if node.select:
            found.append(Step("select", name, {**asdict(node.select), "samples": recipe.samples}))
    return tuple(found)


def open_reasons_of(recipe: Recipe) -> list[str]:
    """Return why a recipe belongs to the open division; empty for closed ones."""
    nodes = recipe.render.items()
    reasons = [f"render node {name!r} blends pictures" for name, node in nodes if node.blend]
    for name, node in nodes:
        if node.select:
            how = {
                "truth": f"the true picture in {node.select.target}",
                "brain": f"predicted head {node.select.head!r}",
            }
            reasons.append(f"render node {name!r} selects one of {recipe.samples} samples by {how[node.select.by]}")
    leaky = [name for name in recipe.post if post_steps.step(name).uses_test_statistics]
    reasons += [f"post step {name!r} uses statistics of the test predictions" for name in leaky]
    scored = [stage for stage in recipe.stages if leaks(stage.normalise)]
    return reasons + [f"stage {stage.name!r} z-scores with statistics of test trials" for stage in scored]
