"""One contract for every dataset reader that is found: what `prepare` and everything after it count on."""

import dataclasses
import functools
import importlib
import pickle
import re
import typing
from pathlib import Path

import layouts
import numpy as np
import pytest

from bench.core import registry
from bench.core.errors import MissingDataError, OptionError
from bench.core.identity import canonical_json, plain
from bench.core.options import build
from bench.data.datasets.base import BetaUnit, Dataset
from bench.data.training_sets import TRAINING_SETS

FIXTURES = {"nsd": "tiny_nsd"}
"""Datasets whose small copy the package itself makes, and the fixture that gives it; others are in `layouts`."""
SOURCES = {source for each in TRAINING_SETS.values() for source in each.pictures} | {"simulated"}
CASES = [(name, "default") for name in FIXTURES] + [
    (name, variant) for name in layouts.names() for variant in layouts.variants(name)
]


def test_every_dataset_has_a_small_copy():
    assert sorted({name for name, _ in CASES}) == sorted(registry.found("dataset"))


def test_no_dataset_is_read_with_the_inside_of_another():
    """NSD's side experiments alone extend what reads NSD: they lie in its spaces, in files of its kinds."""
    package = "bench.data.datasets"
    folder, names = Path(importlib.import_module(package).__path__[0]), registry.found("dataset")
    found = set()
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        imported = re.findall(rf"^(?:from|import) {re.escape(package)}\.(\w+)", path.read_text(), re.M)
        found |= {(own, other) for other in imported if other not in (own, "base") and not other.startswith("_")}
    assert found == {("nsd_imagery", "nsd"), ("nsd_synthetic", "nsd")}
    assert {name.replace("-", "_") for name in names} >= {name for pair in found for name in pair}


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """Return the root of a dataset's small copy, written once."""

    @functools.cache
    def copy(name: str) -> Path:
        root = tmp_path_factory.mktemp(name) / name
        layouts.load(name).write(root)
        return root

    return copy


@pytest.fixture(params=CASES, ids=" ".join)
def dataset(request, copies) -> Dataset:
    name, variant = request.param
    reader = registry.load("dataset", name)
    if name in FIXTURES:
        root, chosen = request.getfixturevalue(FIXTURES[name]), {}
    else:
        root, chosen = copies(name), layouts.variants(name)[variant]
    return reader(build(reader.Options, {"root": str(root), **chosen}, name))


def test_options_are_a_frozen_dataclass_with_a_root(dataset):
    options = type(dataset).Options
    assert dataclasses.is_dataclass(options) and options.__dataclass_params__.frozen
    assert "root" in {field.name for field in dataclasses.fields(options)}
    assert set(typing.get_type_hints(options)) == {field.name for field in dataclasses.fields(options)}
    assert isinstance(type(dataset).version, int)


def test_a_root_that_is_not_there(dataset, tmp_path):
    reader = type(dataset)
    with pytest.raises((MissingDataError, OptionError)):
        reader(build(reader.Options, {"root": str(tmp_path / "nowhere")}, "dataset")).sessions()


def test_source_is_plain_stable_and_without_paths(dataset):
    for source in (dataset.source(), dataset.stimuli_source()):
        assert canonical_json(source) == canonical_json(plain(source))
        assert str(dataset.options.root) not in canonical_json(source)
    again = type(dataset)(dataset.options)
    assert canonical_json(again.source()) == canonical_json(dataset.source())
    assert "label_names" in dataset.source()
    for text in (dataset.name, dataset.label):
        assert text and not set(text) & set("/\\ @\"'")


def test_sessions_are_sorted_pairs_from_one(dataset):
    pairs = list(dataset.sessions())
    assert pairs == sorted(set(pairs))
    assert pairs and all(subject >= 1 and session >= 1 for subject, session in pairs)


def test_voxels_are_in_canonical_order(dataset):
    for subject in {subject for subject, _ in dataset.sessions()}:
        table = dataset.voxels(subject)
        count = len(table.coordinates)
        assert count > 0
        assert table.coordinates.tolist() == sorted(table.coordinates.tolist())
        assert len({tuple(place) for place in table.coordinates.tolist()}) == count
        assert table.coordinates.dtype == np.int32 and table.coordinates.shape[1] in (1, 3)
        assert table.ncsnr.shape == (count,) and table.ncsnr.dtype == np.float32
        assert not np.any(table.ncsnr < 0)
        for atlas, labels in table.labels.items():
            assert labels.shape == (count,) and labels.dtype == np.int16 and labels.min() >= -1, atlas
            assert set(dataset.source()["label_names"]) >= {atlas}


def test_sessions_hold_what_the_design_shows(dataset):
    seen: dict[int, list[int]] = {}
    for subject, session in dataset.sessions():
        voxels = dataset.voxels(subject)
        read, shown = dataset.read_session(subject, session, voxels), dataset.trials(subject, session)
        assert read.betas.shape == (len(shown.trial), len(voxels.coordinates))
        assert read.betas.dtype == np.dtype(dataset.dtype)
        for name in ("trial", "stimulus", "repeat"):
            assert np.array_equal(getattr(read, name), getattr(shown, name))
        assert read.stimulus.min() >= -1 and read.repeat.min() >= 0
        path, expected = dataset.reads(subject, session, len(voxels.coordinates))
        assert read.bytes_read == expected and str(dataset.options.root) in path
        seen.setdefault(subject, []).extend(read.trial.tolist())
    for trials in seen.values():
        assert trials == sorted(set(trials))


def test_betas_are_plausible_in_the_unit_the_reader_declares(dataset):
    """Betas whose factor of 300 was forgotten, or applied twice, are noticed whatever their unit."""
    unit = dataset.unit
    assert unit.name and unit.source and 0 < unit.low < unit.high
    subject, session = dataset.sessions()[0]
    betas = dataset.read_session(subject, session, dataset.voxels(subject)).betas
    assert unit.low < np.median((betas * dataset.scale).std(axis=0)) < unit.high
    assert unit.doubt(betas, dataset.scale) == ""
    for scale in (dataset.scale * 300, dataset.scale / 300):
        assert unit.name in unit.doubt(betas, scale)


def test_nsd_s_factor_is_missed_where_it_was_forgotten(tiny_nsd):
    nsd = registry.load("dataset", "nsd")(
        build(registry.load("dataset", "nsd").Options, {"root": str(tiny_nsd)}, "nsd")
    )
    betas = nsd.read_session(1, 1, nsd.voxels(1)).betas
    assert betas.dtype == np.int16 and nsd.unit.name == "percent signal change"
    assert "in percent signal change it lies between 0.3 and 30" in nsd.unit.doubt(betas, 1.0)


def test_voxels_without_numbers_and_single_trials_say_nothing():
    unit = BetaUnit("percent signal change", 0.3, 30.0, "a paper")
    betas = np.random.default_rng(0).normal(0, 1, (20, 1000)).astype(np.float32)
    betas[:, ::7] = np.nan
    assert unit.doubt(betas, 1.0) == ""
    assert unit.doubt(np.full((20, 5), np.nan), 1.0) == unit.doubt(betas[:1], 1e6) == ""
    assert unit.doubt(betas, 1e3).startswith("betas have a standard deviation of 9")
    assert unit.doubt(np.zeros((20, 4), np.int16), 1 / 300).startswith("betas have a standard deviation of 0 ")


def test_stimuli_come_in_the_order_asked_for(dataset):
    subject, session = dataset.sessions()[0]
    numbers = np.unique(dataset.trials(subject, session).stimulus)
    numbers = numbers[numbers >= 0][:6][::-1].tolist()
    stimuli = list(dataset.stimuli(numbers))
    assert [stimulus.number for stimulus in stimuli] == numbers
    for stimulus in stimuli:
        assert stimulus.image.dtype == np.uint8 and stimulus.image.ndim == 3 and stimulus.image.shape[2] == 3
        assert all(isinstance(caption, str) and caption for caption in stimulus.captions)
    origins = dataset.origins(numbers)
    assert len(origins) == len(numbers)
    for origin in origins:
        source, colon, name = (origin or "coco:0").partition(":")
        # A source no training set knows of would make the audit say that it holds nothing of these pictures.
        assert colon and name and source in SOURCES
    assert dataset.caption_source
    assert list(dataset.stimuli([])) == []


def test_readers_travel_to_ray_workers(dataset):
    there = pickle.loads(pickle.dumps(dataset))
    assert canonical_json(there.source()) == canonical_json(dataset.source())
