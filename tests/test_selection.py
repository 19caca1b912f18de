"""Select nodes: one sample a picture, by the brain's prediction or by the truth, in addresses and in what follows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import ray
import torch
from test_graph import LOW, recipe, walk
from tiny_system import LATENT, keys, noisy, true_pictures

from bench.core.errors import BadDataError, MissingDataError, OptionError, UnknownNameError
from bench.core.storage import Folder
from bench.data.shards.pictures import claim, read_images, write_images
from bench.data.shards.targets import TargetTable
from bench.generators.base import Stimuli
from bench.generators.choice import GeneratorChoice
from bench.recipes.checks import check_recipe
from bench.recipes.parts import HeadSpec, Node, Select
from bench.rendering import graph, selection
from bench.rendering.requests import Request, Source
from bench.rendering.selection import Space, best, encoded, group_means, similarities

SAMPLES, STIMULI = 3, [7, 3, 40]
BRAIN = Select("low", "brain", head="z")
TRUTH = Select("low", "truth", target=LATENT)


def slow_similarity(a, b, kind):
    a, b = a.ravel().astype(float), b.ravel().astype(float)
    return np.corrcoef(a, b)[0, 1] if kind == "correlation" else a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("kind", ["cosine", "correlation"])
def test_similarities_row_by_row(kind):
    a, b = np.random.default_rng(0).standard_normal((2, 5, 4, 3)) + 1
    expected = [slow_similarity(x, y, kind) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(similarities(a, b, kind), expected)
    a[0] = 0
    assert similarities(a, b, kind)[0] == 0
    with pytest.raises(BadDataError, match=r"encoded as \(4, 3\), they are compared with \(4,\)"):
        similarities(a, b[:, :, 0], kind)


def test_the_best_of_each_group_is_the_first_of_equals():
    scores, groups = np.array([0.1, 0.5, 0.5, -1.0, -2.0, 0.3]), np.array([0, 0, 0, 1, 1, 2])
    assert best(scores, groups).tolist() == [1, 3, 5]
    order = [5, 3, 1, 0, 4, 2]
    assert best(scores[order], groups[order]).tolist() == [0, 1, 2]


def test_group_means_are_those_of_a_loop():
    values, groups = np.random.default_rng(1).standard_normal((6, 2, 2)), np.array([2, 0, 2, 1, 0, 2])
    expected = [values[groups == g].mean(axis=0) for g in groups]
    np.testing.assert_allclose(group_means(values, groups), expected)


# -- in a graph, without a generator -----------------------------------------------------------------------------------


def source(samples=SAMPLES, seed=0, repeat=-1):
    rows = keys(1, np.repeat(STIMULI, samples), repeat=repeat, sample=np.tile(range(samples), len(STIMULI)))
    values = np.random.default_rng(seed).standard_normal((rows.num_rows, 4, 16, 16)).astype(np.float32)
    return Source("predicted", rows, {"z": values, "t": values[::-1].copy()})


def selecting(select=BRAIN, **nodes):
    return dataclasses.replace(recipe(low=LOW, out=Node(select=select), **nodes), samples=SAMPLES)


def picture(row, size=8):
    return np.full((3, size, size), 10 * row + 1, np.uint8)


@pytest.fixture
def calls(monkeypatch):
    """Render calls and encoded pictures; a picture's grey level tells its row, its encoding is a noisy copy of one."""
    made, asked = [], []

    def fake_render(jobs, *, batch_size, replicas, advance):
        todo = [job for job in jobs if not claim(job.out, job.identity)]
        made.append(todo)
        for job in todo:
            write_images(
                job.out, job.keys, job.seeds, np.stack([picture(r) for r in range(job.keys.num_rows)]), job.identity
            )

    def fake_encoded(space, pictures, stimuli):
        asked.append((space, stimuli))
        return np.stack([np.random.default_rng(int(p.flat[0])).standard_normal((4, 16, 16)) for p in pictures])

    monkeypatch.setattr(graph, "render", fake_render)
    monkeypatch.setattr(selection, "encoded", fake_encoded)
    return made, asked


@pytest.fixture
def runs(tmp_path):
    return Folder.at(tmp_path / "runs")


def expected_rows(reference):
    """Which row a slow loop chooses for each stimulus."""
    chosen = []
    for place in range(len(STIMULI)):
        mine = range(place * SAMPLES, (place + 1) * SAMPLES)
        codes = {row: np.random.default_rng(10 * row + 1).standard_normal((4, 16, 16)) for row in mine}
        chosen.append(max(mine, key=lambda row: slow_similarity(codes[row], reference(row), "cosine")))
    return chosen


def test_the_brain_s_own_prediction_chooses(runs, calls):
    (images,) = walk(runs, Request(selecting(), source()))
    heads = source().heads["z"]
    rows = expected_rows(lambda row: heads[row // SAMPLES * SAMPLES :][:SAMPLES].mean(axis=0))
    table, pictures = read_images(images.folder)
    assert table["stimulus"].to_pylist() == STIMULI
    assert table["sample"].to_pylist() == [row % SAMPLES for row in rows]
    np.testing.assert_array_equal(pictures, [picture(row) for row in rows])
    ((space, stimuli),) = calls[1]
    assert (space.generator.name, space.target, stimuli) == ("tiny-diffusion", "latent", np.repeat(STIMULI, 3).tolist())


def test_the_truth_chooses(runs, calls, ray_session):
    truth = np.random.default_rng(8).standard_normal((3, 4, 16, 16)).astype(np.float32)
    table = TargetTable(np.array(sorted(STIMULI)), truth)
    given = {LATENT: ray.put(table)}
    (images,) = walk(runs, Request(selecting(TRUTH), source(), given, {LATENT: "d" * 16}))
    rows = expected_rows(lambda row: table.of(np.array([STIMULI[row // SAMPLES]]))[0])
    assert read_images(images.folder)[0]["sample"].to_pylist() == [row % SAMPLES for row in rows]
    assert images.description["node"]["truth"] == "d" * 16
    with pytest.raises(MissingDataError, match=r"needs target shards tiny-diffusion.latent"):
        walk(Folder.at(f"{runs}-2"), Request(selecting(TRUTH), source()))


def test_a_rerun_chooses_nothing_again(runs, calls):
    nodes = {"low": LOW, "one": Node(select=BRAIN), "out": Node("tiny-diffusion", {}, {"image": "one"})}
    request = Request(dataclasses.replace(selecting(), render=nodes), source())
    first = walk(runs, request)
    assert len(calls[1]) == 1
    assert walk(runs, request) == first
    assert len(calls[1]) == 1
    assert not calls[0][-1]


def test_what_follows_a_selection_gets_its_rows_alone(runs, calls):
    nodes = {"one": Node(select=BRAIN), "out": Node("tiny-diffusion", {}, {"image": "one", "latent": "t"})}
    chosen = dataclasses.replace(selecting(), render={"low": LOW, **nodes})
    (images,) = walk(runs, Request(chosen, source()))
    job = calls[0][1][0]
    heads = source().heads["z"]
    rows = expected_rows(lambda row: heads[row // SAMPLES * SAMPLES :][:SAMPLES].mean(axis=0))
    np.testing.assert_array_equal(job.inputs["image"], [picture(row) for row in rows])
    np.testing.assert_array_equal(job.inputs["latent"], source().heads["t"][rows])
    np.testing.assert_array_equal(job.seeds, calls[0][0][0].seeds[rows])
    assert job.keys["sample"].to_pylist() == [row % SAMPLES for row in rows]
    assert read_images(images.folder)[0].num_rows == len(STIMULI)
    mixed = {"one": Node(select=BRAIN), "out": Node(blend={"one": 0.5, "low": 0.5})}
    with pytest.raises(BadDataError, match="mixes selected pictures with unselected ones"):
        walk(runs, Request(dataclasses.replace(selecting(), render={"low": LOW, **mixed}), source()))


def test_one_sample_is_taken_as_it_is(runs, calls):
    """As the oracle's graph is fed: true latents, one a stimulus."""
    (images,) = walk(runs, Request(selecting(), source(samples=1)))
    assert read_images(images.folder)[0]["stimulus"].to_pylist() == STIMULI
    assert calls[1] == []


def test_showings_are_kept_apart(runs, calls):
    rows = keys(1, [5] * 4, repeat=[0, 0, 1, 1], sample=[0, 1, 0, 1])
    values = np.random.default_rng(2).standard_normal((4, 4, 16, 16)).astype(np.float32)
    (images,) = walk(runs, Request(selecting(), Source("each", rows, {"z": values, "t": values})))
    assert read_images(images.folder)[0]["repeat"].to_pylist() == [0, 1]


def test_the_choice_is_part_of_the_address(runs, calls, ray_session, monkeypatch):
    table = TargetTable(np.array(sorted(STIMULI)), np.ones((3, 4, 16, 16), np.float32))
    given = {LATENT: ray.put(table)}

    def address(select, digest="d" * 16):
        return walk(runs, Request(selecting(select), source(), given, {LATENT: digest}))[0].id

    found = [
        address(BRAIN),
        address(dataclasses.replace(BRAIN, similarity="correlation")),
        address(dataclasses.replace(BRAIN, head="t")),
        address(TRUTH),
        address(TRUTH, "e" * 16),
    ]
    monkeypatch.setattr(selection, "VERSION", 2)
    found.append(address(BRAIN))
    assert len(set(found)) == len(found)


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "samples", "error", "message"),
    [
        (
            {"out": Node(select=Select("z", "brain", head="z"))},
            2,
            OptionError,
            "selects from 'z': a head, not pictures",
        ),
        ({"out": Node(select=dataclasses.replace(BRAIN, head="low"))}, 2, OptionError, "compares with 'low': pictures"),
        ({"out": Node(select=BRAIN)}, 1, OptionError, "selects among samples: `samples` is 1, 2 are needed"),
        (
            {"out": Node(select=dataclasses.replace(TRUTH, target="tiny-diffusion.latnt"))},
            2,
            UnknownNameError,
            "'latnt'",
        ),
        ({"out": Node(select=dataclasses.replace(BRAIN, head="y"))}, 2, UnknownNameError, "unknown head or node 'y'"),
    ],
)
def test_selections_that_cannot_be_are_named(nodes, samples, error, message):
    with pytest.raises(error, match=message):
        check_recipe(dataclasses.replace(recipe(low=LOW, **nodes), samples=samples))


def test_targets_that_need_captions_encode_no_samples(monkeypatch):
    spec = GeneratorChoice("tiny-diffusion").kind.targets["latent"]
    targets = {"latent": spec, "words": dataclasses.replace(spec, needs=("captions",))}
    monkeypatch.setattr(GeneratorChoice("tiny-diffusion").kind, "targets", targets)
    by_words = Node(select=dataclasses.replace(TRUTH, target="tiny-diffusion.words"))
    with pytest.raises(OptionError, match=r"cannot encode samples as 'tiny-diffusion.words': it needs captions"):
        check_recipe(dataclasses.replace(recipe(low=LOW, out=by_words), samples=2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "brain"}, "select by brain names the predicted `head`"),
        ({"by": "brain", "head": "z", "target": LATENT}, "and no target"),
        ({"by": "truth"}, "select by truth names the `target`"),
        ({"by": "truth", "target": LATENT, "head": "z"}, "and no head"),
        ({"by": "truth", "target": "latent"}, "a target is <generator>.<target>, got 'latent'"),
    ],
)
def test_a_selection_names_what_it_compares_with(given, message):
    with pytest.raises(OptionError, match=message):
        Select("low", **given)


def test_a_recipe_names_every_target_it_needs():
    by_truth = dataclasses.replace(
        recipe(low=LOW, out=Node(select=dataclasses.replace(TRUTH, target="a.b"))), samples=2
    )
    assert by_truth.targets == ["a.b", LATENT]
    assert recipe(out=LOW).stages[0].heads["z"] == HeadSpec(LATENT)


# -- with the tiny generator -------------------------------------------------------------------------------------------


def test_encodings_are_the_generator_s_whatever_runs_at_once(tiny):
    stimuli = tiny.stimuli(5)
    pictures = noisy(true_pictures(tiny.data, stimuli), 30, 0)
    pictures = np.tile(pictures, (9, 1, 1, 1))  # more than one batch
    many = encoded(Space(GeneratorChoice("tiny-diffusion"), "latent"), pictures, list(stimuli) * 9)
    generator = GeneratorChoice("tiny-diffusion").load(torch.device("cpu"))
    alone = generator.encode(Stimuli(torch.from_numpy(pictures), [()] * 45, [None] * 45), ["latent"], [0] * 45)
    np.testing.assert_allclose(many, alone["latent"].numpy(), atol=1e-4)
    part = encoded(Space(GeneratorChoice("tiny-diffusion"), "latent", (1, 3)), pictures[:5], list(stimuli))
    np.testing.assert_allclose(part, many[:5, 1:3], atol=1e-4)


def test_the_true_picture_is_chosen_among_worse_ones(tiny, tmp_path, monkeypatch):
    """The samples are the truth under three amounts of noise; by truth the cleanest of each is chosen."""
    stimuli = tiny.stimuli(4)
    truth = true_pictures(tiny.data, stimuli)
    amounts = [[90, 5, 60], [5, 90, 60], [60, 90, 5], [5, 60, 90]]
    made = np.stack(
        [noisy(truth[i : i + 1], a, 10 * i + k)[0] for i, row in enumerate(amounts) for k, a in enumerate(row)]
    )
    rows = keys(1, np.repeat(stimuli, 3), sample=np.tile(range(3), 4))

    def fake(jobs, *, batch_size, replicas, advance):
        for job in jobs:
            write_images(job.out, job.keys, job.seeds, made, job.identity)

    monkeypatch.setattr(graph, "render", fake)
    heads = dict.fromkeys(("z", "t"), np.zeros((12, 4, 16, 16), np.float32))
    request = Request(selecting(TRUTH), Source("p", rows, heads), tiny.targets, tiny.digests.targets)
    (images,) = walk(Folder.at(tmp_path), request)
    table, pictures = read_images(images.folder)
    assert table["sample"].to_pylist() == [int(np.argmin(row)) for row in amounts]
    np.testing.assert_array_equal(pictures, made[[1, 3, 8, 9]])
