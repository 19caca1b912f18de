"""Render graphs node by node: what feeds what, what is shared, and what an address depends on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from tiny_system import keys

from bench.core import registry
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.data.shards.pictures import ImageSet, claim, read_images, write_images
from bench.recipes.base import Recipe
from bench.recipes.parts import HeadSpec, Node, Stage
from bench.rendering import graph
from bench.rendering.graph import render_graphs
from bench.rendering.jobs import RenderJob
from bench.rendering.requests import Request, Source

STIMULI = [7, 3, 40]
STAGE = Stage("ridge", heads={"z": HeadSpec("tiny-diffusion.latent"), "t": HeadSpec("tiny-diffusion.latent")})
LOW = Node("tiny-diffusion", {"strength": 0.0}, {"latent": "z"})
HIGH = Node("tiny-diffusion", {"strength": 0.5}, {"image": "low"})


def recipe(name: str = "mine", **nodes: Node) -> Recipe:
    return Recipe(name, (STAGE,), nodes)


def source(name: str = "predicted", subject: int = 1, rows: pa.Table | None = None, seed: int = 0) -> Source:
    rows = keys(subject, STIMULI) if rows is None else rows
    rng = np.random.default_rng(seed)
    heads = {h: rng.standard_normal((rows.num_rows, 4, 16, 16)).astype(np.float32) for h in ("z", "t")}
    return Source(name, rows, heads)


def picture_of(job: RenderJob) -> np.ndarray:
    """What the fake generator makes: pictures get darker by a third, latents become flat pictures; seeds show."""
    made = np.empty((job.keys.num_rows, 3, 8, 8), np.uint8)
    for row, seed in enumerate(job.seeds):
        if "image" in job.inputs:
            made[row] = job.inputs["image"][row] // 3
        else:
            made[row] = int(100 * abs(job.inputs["latent"][row].mean() * 16) + seed % 50) % 256
    return made


@pytest.fixture
def calls(monkeypatch) -> list[list[RenderJob]]:
    """Every call of the render stage; it is done here, without Serve."""
    made: list[list[RenderJob]] = []

    def fake(jobs, *, batch_size, replicas, advance):
        todo = [job for job in jobs if not claim(job.out, job.identity)]
        made.append(todo)
        for job in todo:
            write_images(job.out, job.keys, job.seeds, picture_of(job), job.identity)
            advance(job.keys.num_rows, job.out.name)

    monkeypatch.setattr(graph, "render", fake)
    return made


@pytest.fixture
def runs(tmp_path) -> Folder:
    return Folder.at(tmp_path / "runs")


def walk(runs: Folder, *requests: Request, seed: int = 0) -> list[ImageSet]:
    return render_graphs(requests, runs, seed, 32, None, lambda units=1, note="": None)


def test_pictures_of_the_first_node_feed_the_second(runs, calls):
    (images,) = walk(runs, Request(recipe(out=HIGH, low=LOW), source()))
    ((low,), (high,)) = calls
    np.testing.assert_array_equal(low.inputs["latent"], source().heads["z"])
    np.testing.assert_array_equal(high.inputs["image"], picture_of(low))
    assert (low.options, high.options) == ({"strength": 0.0}, {"strength": 0.5})
    table, pictures = read_images(images.folder)
    np.testing.assert_array_equal(pictures, picture_of(low) // 3)
    assert table["stimulus"].to_pylist() == STIMULI
    assert images.description["inputs"] == {"image": low.out.name}
    assert images.folder.name == images.id == graph.digest(images.description)


def test_blends_are_weighted_sums_and_may_be_blended_and_fed_again(runs, calls):
    other = Node("tiny-diffusion", {}, {"latent": "t"})
    nodes = {"low": LOW, "high": other, "mix": Node(blend={"low": 0.25, "high": 0.75})}
    (images,) = walk(
        runs,
        Request(
            recipe(**nodes, again=Node(blend={"mix": 1.0}), out=Node("tiny-diffusion", {}, {"image": "again"})),
            source(),
        ),
    )
    first = {job.out.name: picture_of(job).astype(float) for job in calls[0]}
    low, high = first.values()
    mixed = np.rint(0.25 * low + 0.75 * high).astype(np.uint8)
    np.testing.assert_array_equal(calls[1][0].inputs["image"], mixed)
    np.testing.assert_array_equal(read_images(images.folder)[1], mixed // 3)


def test_a_blend_beyond_white_is_white(runs, calls):
    nodes = {"low": LOW, "out": Node(blend={"low": 40.0})}
    (images,) = walk(runs, Request(recipe(**nodes), source()))
    expected = np.clip(40 * picture_of(calls[0][0]).astype(int), 0, 255)
    np.testing.assert_array_equal(read_images(images.folder)[1], expected)
    assert expected.max() == 255


def test_two_recipes_share_their_first_node(runs, calls):
    long = recipe("long", low=LOW, out=HIGH)
    other = recipe("other", first=LOW, out=Node("tiny-diffusion", {"strength": 0.2}, {"image": "first"}))
    short = recipe("short", out=LOW)
    done = walk(runs, *(Request(each, source()) for each in (long, other, short)))
    assert [len(jobs) for jobs in calls] == [1, 2]
    assert done[2].folder == calls[0][0].out
    assert len({images.id for images in done}) == 3


def test_a_rerun_renders_nothing_and_gives_the_same(runs, calls):
    request = Request(recipe(low=LOW, out=Node(blend={"low": 0.5})), source())
    first = walk(runs, request)
    calls.clear()
    assert walk(runs, request) == first
    assert not any(calls)


def test_seeds_name_stimulus_repeat_and_sample_only(runs, calls):
    rows = keys(1, [5, 5, 5, 5, 9], repeat=[0, 0, 1, 1, -1], sample=[0, 1, 0, 1, 0])
    walk(runs, Request(recipe(out=LOW), source(rows=rows)), seed=3)
    seeds = calls[0][0].seeds.tolist()
    assert seeds == [picture_seed(*name, 3) for name in ((5, 0, 0), (5, 0, 1), (5, 1, 0), (5, 1, 1), (9, 0, 0))]
    assert len(set(seeds)) == 5


def test_seeds_are_the_same_in_every_subject_and_recipe(runs, calls):
    two, strong = source("two", subject=2, seed=1), dataclasses.replace(LOW, options={"strength": 0.9})
    walk(runs, Request(recipe(out=LOW), source()), Request(recipe("other", out=strong), two))
    one, other = calls[0]
    np.testing.assert_array_equal(one.seeds, other.seeds)
    assert one.out != other.out
    np.testing.assert_array_equal(one.seeds, [picture_seed(stimulus) for stimulus in STIMULI])


def test_an_address_depends_on_all_that_makes_the_picture(runs, calls, monkeypatch):
    generator = registry.load("generator", "tiny-diffusion")

    def address(node: Node = LOW, seed: int = 0, **given) -> str:
        return walk(runs, Request(recipe(out=node), source(**given)), seed=seed)[0].id

    found = [
        address(),
        address(dataclasses.replace(LOW, options={"strength": 0.1})),
        address(dataclasses.replace(LOW, inputs={"latent": "t"})),
        address(seed=1),
        address(name="others"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(generator, "version", generator.version + 1)
        found.append(address())
    with monkeypatch.context() as patch:
        patch.setattr(generator, "weights_digest", classmethod(lambda cls, options: "ab" * 32))
        found.append(address())
    assert len(set(found)) == 7
    # A default that is written out is the same picture; so is another name of the recipe.
    assert address(dataclasses.replace(LOW, options={"strength": 0.0, "eta": 0.0})) == found[0]
    assert walk(runs, Request(recipe("renamed", out=LOW), source()))[0].id == found[0]


def test_what_comes_before_changes_the_address_of_what_follows(runs, calls):
    other = dataclasses.replace(LOW, options={"strength": 0.3})
    one, two = walk(runs, Request(recipe(low=LOW, out=HIGH), source()), Request(recipe(low=other, out=HIGH), source()))
    assert one.id != two.id
