"""From shards to z-scored trials: against loops over trials, with files gone, changed or cut short."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data.datasource.partitioning import Partitioning
from ray.data.expressions import col
from stream_shards import (
    SCALE,
    SHARED,
    VOXELS,
    coordinates,
    labels,
    manifest_of,
    raw,
    reference_z,
    role_of,
    trials_of,
    write_session,
    write_shards,
    write_voxels,
)

from bench import console
from bench.data import shards
from bench.data.shards import FileEntry, read_manifest
from bench.data.splits import ROLES, Split
from bench.data.stream import Query, SubjectTrials, load, statistics
from bench.errors import BadDataError, CorruptFileError, MissingDataError
from bench.fit.subject_stream import SubjectStream
from bench.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_session")
ALL = ("train", "validation", "test")
FIT = ("train", "validation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    """A set of shards that no test changes."""
    made = Folder.at(tmp_path_factory.mktemp("stream") / "small")
    write_shards(made)
    return made


@pytest.fixture
def own(tmp_path) -> Folder:
    """A set of shards to spoil."""
    made = Folder.at(tmp_path / "small")
    write_shards(made)
    return made


def read(folder: Folder, subjects=(1, 2), roles=ALL, **changes) -> dict[int, SubjectTrials]:
    query = Query(folder, subjects, Split(), roles, **changes)
    references = load(query, SHARED)
    return {subject: ray.get(reference) for subject, reference in references.items()}


@pytest.fixture(scope="module")
def loaded(ray_session, folder) -> dict[int, SubjectTrials]:
    return read(folder)


@pytest.mark.parametrize("subject", sorted(VOXELS))
def test_trials_are_those_of_the_files_in_their_order(loaded, subject):
    data, trials = raw(subject), loaded[subject]
    for name in ("betas", "trial", "stimulus", "repeat", "session"):
        np.testing.assert_array_equal(getattr(trials, name), data[name], err_msg=name)
    np.testing.assert_array_equal(trials.role, role_of(data["stimulus"]))
    np.testing.assert_array_equal(trials.coordinates, coordinates(subject))
    np.testing.assert_array_equal(trials.labels["streams"], labels(subject)["streams"])
    assert trials.betas.dtype == np.dtype("<i2")
    assert (trials.subject, trials.n_voxels) == (subject, VOXELS[subject])


@pytest.mark.parametrize("rule", ["session", "subject", "none"])
def test_z_scores_are_those_of_loops_over_training_trials(folder, rule):
    for subject, trials in read(folder, normalise=rule).items():
        data = raw(subject)
        train = role_of(data["stimulus"]) == ROLES.index("train")
        z = trials.z(np.arange(len(trials.trial)))
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, reference_z(data, train, rule), rtol=2e-5, atol=2e-5)


def test_betas_that_are_not_z_scored_are_percent_signal_change(folder):
    trials = read(folder, subjects=(2,), normalise="none")[2]
    np.testing.assert_allclose(trials.z(np.array([3])), raw(2)["betas"][[3]] * SCALE, rtol=1e-6)


def test_statistics_come_from_training_trials_also_where_only_test_trials_are_kept(folder, loaded):
    test = read(folder, subjects=(1,), roles=("test",))[1]
    rows = loaded[1].rows("test")
    assert set(test.stimulus) <= set(SHARED.tolist())
    np.testing.assert_array_equal(test.z(np.arange(len(test.trial))), loaded[1].z(rows))


def test_what_test_trials_hold_changes_no_statistic(own):
    before = read(own, subjects=(1,), roles=FIT)[1]
    data = raw(1)
    rows = data["session"] == 1
    betas = data["betas"][rows].copy()
    betas[role_of(data["stimulus"][rows]) != ROLES.index("train")] += 999
    entry = write_session(own, 1, 1, betas)
    others = [e for e in read_manifest(own).files if e.path != entry.path]
    manifest_of([*others, entry]).write(own)
    after = read(own, subjects=(1,), roles=FIT)[1]
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.scale, before.scale)


def test_fits_are_handed_no_test_trial(folder):
    trials = read(folder, subjects=(1,), roles=FIT)[1]
    assert len(trials.rows("test")) == 0
    assert not set(trials.stimulus) & set(SHARED.tolist())
    reference = trials_of(1)
    np.testing.assert_array_equal(trials.trial, reference.trial)
    np.testing.assert_allclose(trials.z(np.arange(len(trials.trial))), reference.betas, rtol=2e-5, atol=2e-5)


def test_other_subjects_files_are_never_opened(own):
    for session in (1, 2):
        own.write_bytes(shards.session_path(1, session), b"not parquet")
    (Path(own.path) / shards.voxels_path(1)).unlink()
    assert read(own, subjects=(2,))[2].n_voxels == VOXELS[2]


def test_other_sessions_files_are_never_opened(own):
    (Path(own.path) / shards.session_path(1, 1)).unlink()
    own.write_bytes(shards.session_path(2, 1), b"not parquet")
    for subject, trials in read(own, sessions=(2,)).items():
        np.testing.assert_array_equal(trials.trial, np.arange(60, 120), err_msg=str(subject))
        np.testing.assert_array_equal(trials.sessions, [2])


def test_a_second_pass_reads_no_file(own):
    reference = load(Query(own, (1,), Split(), FIT), SHARED)[1]
    first = ray.get(reference)
    for path in Path(own.path).rglob("*.parquet"):
        path.unlink()
    second = ray.get(reference)
    batches = [list(SubjectStream(t, {}).batches("unlabelled", 3, 16)) for t in (first, second)]
    for one, other in zip(*batches, strict=True):
        assert (one.voxels == other.voxels).all()


def test_the_arrays_lie_in_shared_memory_read_only(ray_session, folder):
    reference = load(Query(folder, (1,), Split(), FIT), SHARED)[1]
    one, other = ray.get(reference), ray.get(reference)
    assert not one.betas.flags.writeable
    assert one.betas.__array_interface__["data"][0] == other.betas.__array_interface__["data"][0]
    with pytest.raises(ValueError, match="read-only"):
        one.betas[0, 0] = 1


def test_the_settings_of_other_datasets_are_left_alone(ray_session, folder):
    before = ray.data.DataContext.get_current()
    load(Query(folder, (1,), Split(), FIT), SHARED)
    assert ray.data.DataContext.get_current() is before
    assert not before.execution_options.preserve_order


def test_a_corrupt_file_is_one_line_on_the_command_line(own, capsys):
    path = shards.session_path(1, 2)
    own.write_bytes(path, own.read_bytes(path)[:-100])
    assert console.guard(lambda argv: len(read(own)), []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {own}/{path}: ")


def test_nothing_depends_on_parallelism(loaded, folder):
    """One subject alone, with every task of the pipeline after the other, gives the trials of all together."""
    context = ray.data.DataContext.get_current()
    before = context.execution_options.resource_limits
    context.execution_options.resource_limits = before.copy(cpu=1)
    try:
        alone = read(folder, subjects=(2,))[2]
    finally:
        context.execution_options.resource_limits = before
    for field in dataclasses.fields(SubjectTrials):
        one, other = getattr(alone, field.name), getattr(loaded[2], field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_any_user_of_ray_data_can_read_the_shards(ray_session, folder):
    """No code of ours: hive partitions as integers, pruned before anything is read."""
    paths = [folder.path + f"/subject={subject}" for subject in (1, 2)]
    hive = Partitioning("hive", base_dir=folder.path, field_types={"subject": int, "session": int})
    dataset = ray.data.read_parquet(paths, partitioning=hive).select_columns(["trial", "subject", "session"])
    rows = dataset.filter(expr=(col("subject") == 2) & (col("session") == 1)).to_pandas().sort_values("trial")
    assert rows["trial"].tolist() == raw(2)["trial"][:60].tolist()
    assert dataset.schema().base_schema.field("subject").type == pa.int64()


def fails(error: type[Exception], message: str, folder: Folder, **changes) -> None:
    """Reading fails with this error and this message, also after the way back from a worker."""
    with pytest.raises(error, match=message):
        read(folder, **changes)


def test_a_changed_file_is_named(own):
    path = shards.session_path(2, 1)
    content = bytearray(own.read_bytes(path))
    content[50] ^= 1
    own.write_bytes(path, bytes(content))
    fails(CorruptFileError, r"subject=2/session=1/part-0.parquet: sha256 .* its manifest says", own)


def test_a_truncated_file_is_named(own):
    path = shards.session_path(1, 2)
    own.write_bytes(path, own.read_bytes(path)[:-100])
    fails(CorruptFileError, r"subject=1/session=2/part-0.parquet: \d+ bytes, its manifest says \d+", own)


def test_a_missing_file_is_named(own):
    (Path(own.path) / shards.session_path(1, 2)).unlink()
    fails(MissingDataError, r"no file .*subject=1/session=2/part-0.parquet", own)


def test_a_changed_voxel_table_is_named(own):
    table = own.read_table(shards.voxels_path(1))
    own.write_table(shards.voxels_path(1), table.set_column(0, "x", pa.array(np.zeros(12), pa.int32())))
    fails(CorruptFileError, r"voxels/subject-1.parquet: sha256 .* its manifest says", own, subjects=(1,))


def test_sessions_and_subjects_that_are_not_there_are_named(folder):
    fails(MissingDataError, r"subject 1 has sessions \[1, 2\], not \[7, 9\]", folder, sessions=(9, 1, 7))
    fails(MissingDataError, r"hold no session of subject 3; they hold \[1, 2\]", folder, subjects=(1, 3))


def test_a_set_that_was_never_finished(own):
    (Path(own.path) / shards.MANIFEST).unlink()
    fails(MissingDataError, "no manifest.json", own)


def sealed(folder: Folder, entry: FileEntry, **changes) -> None:
    """Seal the set again with another entry in the place of the one with its path."""
    others = [e for e in read_manifest(folder).files if e.path != entry.path]
    dataclasses.replace(manifest_of([*others, entry]), **changes).write(folder)


def test_betas_of_another_mask_are_refused(own):
    betas = np.zeros((60, VOXELS[1] + 1), np.int16)
    sealed(own, write_session(own, 1, 2, betas))
    fails(BadDataError, r"trials of subject 1 hold \[26\] bytes; its 12 voxels of int16 make 24", own, subjects=(1,))


def test_a_voxel_table_of_another_mask_is_refused(own):
    entry = dataclasses.replace(write_voxels(own, 2), path=shards.voxels_path(1), subject=1)
    own.write_bytes(entry.path, own.read_bytes(shards.voxels_path(2)))
    sealed(own, entry)
    fails(BadDataError, r"subject-1.parquet: 9 voxels, the betas of subject 1 have 12", own, subjects=(1,))


def test_a_file_with_other_rows_than_its_manifest_says(own):
    entry = read_manifest(own).entry(shards.session_path(1, 1))
    sealed(own, dataclasses.replace(entry, rows=61))
    fails(BadDataError, r"session=1/part-0.parquet: 60 rows, its manifest says 61", own, subjects=(1,))


def float_set(folder: Folder, spoil) -> None:
    """A set of float betas of subject 1, spoilt by a function of (trials, voxels) of session 1."""
    data = raw(1)
    betas = data["betas"].astype(np.float32)
    spoil(betas)
    files = [write_session(folder, 1, s, betas[data["session"] == s]) for s in (1, 2)]
    manifest_of([*files, write_voxels(folder, 1)], dtype="<f4").write(folder)


def row_of_role(role: str) -> int:
    return int(np.flatnonzero(role_of(raw(1)["stimulus"]) == ROLES.index(role))[0])


def test_nan_in_training_trials_is_refused(tmp_path):
    folder = Folder.at(tmp_path)

    def spoil(betas):
        betas[row_of_role("train"), [2, 5]] = np.nan

    float_set(folder, spoil)
    fails(BadDataError, r"session 1: 2 voxels hold NaN in training trials", folder, subjects=(1,))


def test_nan_elsewhere_stays_where_it_is(tmp_path):
    folder = Folder.at(tmp_path)
    row = row_of_role("test")

    def spoil(betas):
        betas[row, 2] = np.nan

    float_set(folder, spoil)
    z = read(folder, subjects=(1,))[1].z(np.arange(120))
    assert np.argwhere(np.isnan(z)).tolist() == [[row, 2]]


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_a_constant_voxel_is_zero(tmp_path, value):
    folder = Folder.at(tmp_path)

    def spoil(betas):
        betas[:, 3] = value
        betas[row_of_role("validation"), 3] += 5

    float_set(folder, spoil)
    for rule in ("session", "subject"):
        z = read(folder, subjects=(1,), normalise=rule)[1].z(np.arange(120))
        assert np.isfinite(z).all()
        assert (z[:, 3] == 0).all()


def test_a_session_without_training_trials_is_refused():
    betas, session = np.ones((4, 2)), np.array([1, 1, 2, 2])
    train = np.array([True, True, False, False])
    with pytest.raises(BadDataError, match="session 2 has no training trial to normalise by"):
        statistics(betas, session, np.array([1, 2]), train, "session")
    mean, scale = statistics(betas, session, np.array([1, 2]), train, "none")
    assert (mean == 0).all()
    assert (scale == 1).all()


def test_the_same_through_s3(ray_session, s3_bucket, loaded):
    folder = Folder.at(f"s3://{s3_bucket}/data/small")
    write_shards(folder)
    trials = read(folder, subjects=(2,))[2]
    np.testing.assert_array_equal(trials.betas, loaded[2].betas)
    np.testing.assert_array_equal(trials.mean, loaded[2].mean)
    folder.write_bytes(shards.session_path(2, 1), b"short")
    fails(CorruptFileError, r"s3://.*session=1/part-0.parquet: 5 bytes, its manifest says", folder, subjects=(2,))
