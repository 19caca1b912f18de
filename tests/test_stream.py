"""From shards to z-scored trials: against loops over trials, with files gone, changed or cut short."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
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
    written_for,
)

from bench.core import console
from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, UnknownNameError
from bench.core.storage import Folder
from bench.data.shards import manifest
from bench.data.shards.manifest import FileEntry, read_manifest
from bench.data.splits import ROLES, Split
from bench.data.stream.load import FIT, Query, load
from bench.data.stream.rules import RULES, Moments, merged, moments, scaling
from bench.data.stream.trials import Betas, SubjectTrials
from bench.fitting.subject_stream import SubjectStream

pytestmark = pytest.mark.usefixtures("ray_session")
ALL = ("train", "validation", "test")


folder, own = written_for("module"), written_for("function")


def read(folder: Folder, subjects=(1, 2), roles=ALL, **changes) -> dict[int, SubjectTrials]:
    query = Query(folder, subjects, Split(), (roles,), **changes)
    (references,) = load(query, SHARED)
    return {subject: ray.get(reference) for subject, reference in references.items()}


@pytest.fixture(scope="module")
def loaded(ray_session, folder) -> dict[int, SubjectTrials]:
    return read(folder)


@pytest.mark.parametrize("subject", sorted(VOXELS))
def test_trials_are_those_of_the_files_in_their_order(loaded, subject):
    data, trials = raw(subject), loaded[subject]
    np.testing.assert_array_equal(np.concatenate(trials.betas.blocks), data["betas"])
    for name in ("trial", "stimulus", "repeat", "session"):
        np.testing.assert_array_equal(getattr(trials, name), data[name], err_msg=name)
    np.testing.assert_array_equal(trials.role, role_of(data["stimulus"]))
    np.testing.assert_array_equal(trials.coordinates, coordinates(subject))
    np.testing.assert_array_equal(trials.labels["streams"], labels(subject)["streams"])
    assert {block.dtype for block in trials.betas.blocks} == {np.dtype("<i2")}
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
    np.testing.assert_allclose(
        trials.z(np.arange(len(trials.trial))), np.concatenate(reference.betas.blocks), rtol=2e-5, atol=2e-5
    )


def test_other_subjects_files_are_never_opened(own):
    for session in (1, 2):
        own.write_bytes(manifest.session_path(1, session), b"not parquet")
    (Path(own.path) / manifest.voxels_path(1)).unlink()
    assert read(own, subjects=(2,))[2].n_voxels == VOXELS[2]


def test_other_sessions_files_are_never_opened(own):
    (Path(own.path) / manifest.session_path(1, 1)).unlink()
    own.write_bytes(manifest.session_path(2, 1), b"not parquet")
    for subject, trials in read(own, sessions=(2,)).items():
        np.testing.assert_array_equal(trials.trial, np.arange(60, 120), err_msg=str(subject))
        np.testing.assert_array_equal(trials.sessions, [2])


def test_a_second_pass_reads_no_file(own):
    reference = load(Query(own, (1,), Split(), (FIT,)), SHARED)[0][1]
    first = ray.get(reference)
    for path in Path(own.path).rglob("*.parquet"):
        path.unlink()
    second = ray.get(reference)
    batches = [list(SubjectStream(t, {}).batches("unlabelled", 3, 16)) for t in (first, second)]
    for one, other in zip(*batches, strict=True):
        assert (one.voxels == other.voxels).all()


def test_the_arrays_lie_in_shared_memory_read_only(ray_session, folder):
    reference = load(Query(folder, (1,), Split(), (FIT,)), SHARED)[0][1]
    one, other = ray.get(reference), ray.get(reference)
    for mine, theirs in zip(one.betas.blocks, other.betas.blocks, strict=True):
        assert not mine.flags.writeable
        assert mine.__array_interface__["data"][0] == theirs.__array_interface__["data"][0]
        with pytest.raises(ValueError, match="read-only"):
            mine[0, 0] = 1


def test_a_corrupt_file_is_one_line_on_the_command_line(own, capsys):
    path = manifest.session_path(1, 2)
    own.write_bytes(path, own.read_bytes(path)[:-100])
    assert console.guard(lambda argv: len(read(own)), []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {own}/{path}: ")


@ray.remote(num_cpus=1)
class Idler:
    """Takes one of the two CPUs."""

    def ready(self) -> bool:
        return True


def test_nothing_depends_on_parallelism(loaded, folder):
    """One subject alone, with every task after the other, gives the trials of all together."""
    idler = Idler.remote()
    assert ray.get(idler.ready.remote())
    alone = read(folder, subjects=(2,))[2]
    ray.kill(idler)
    for field in dataclasses.fields(SubjectTrials):
        one, other = getattr(alone, field.name), getattr(loaded[2], field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    for one, other in zip(alone.betas.blocks, loaded[2].betas.blocks, strict=True):
        np.testing.assert_array_equal(one, other)


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
    path = manifest.session_path(2, 1)
    content = bytearray(own.read_bytes(path))
    content[50] ^= 1
    own.write_bytes(path, bytes(content))
    fails(CorruptFileError, r"subject=2/session=1/part-0.parquet: sha256 .* its manifest says", own)


def test_a_truncated_file_is_named(own):
    path = manifest.session_path(1, 2)
    own.write_bytes(path, own.read_bytes(path)[:-100])
    fails(CorruptFileError, r"subject=1/session=2/part-0.parquet: \d+ bytes, its manifest says \d+", own)


def test_a_missing_file_is_named(own):
    (Path(own.path) / manifest.session_path(1, 2)).unlink()
    fails(MissingDataError, r"no file .*subject=1/session=2/part-0.parquet", own)


def test_a_changed_voxel_table_is_named(own):
    table = own.read_table(manifest.voxels_path(1))
    own.write_table(manifest.voxels_path(1), table.set_column(0, "x", pa.array(np.zeros(12), pa.int32())))
    fails(CorruptFileError, r"voxels/subject-1.parquet: sha256 .* its manifest says", own, subjects=(1,))


def test_sessions_and_subjects_that_are_not_there_are_named(folder):
    fails(MissingDataError, r"subject 1 has sessions \[1, 2\], not \[7, 9\]", folder, sessions=(9, 1, 7))
    fails(MissingDataError, r"hold no session of subject 3; they hold \[1, 2\]", folder, subjects=(1, 3))


def test_a_set_that_was_never_finished(own):
    (Path(own.path) / manifest.MANIFEST).unlink()
    fails(MissingDataError, "no manifest.json", own)


def sealed(folder: Folder, entry: FileEntry, **changes) -> None:
    """Seal the set again with another entry in the place of the one with its path."""
    others = [e for e in read_manifest(folder).files if e.path != entry.path]
    dataclasses.replace(manifest_of([*others, entry]), **changes).write(folder)


def test_betas_of_another_mask_are_refused(own):
    betas = np.zeros((60, VOXELS[1] + 1), np.int16)
    sealed(own, write_session(own, 1, 2, betas))
    fails(
        BadDataError,
        r"trials of subject 1 hold fixed_size_binary\[26\]; its 12 voxels of int16 make 24",
        own,
        subjects=(1,),
    )


def test_a_voxel_table_of_another_mask_is_refused(own):
    entry = dataclasses.replace(write_voxels(own, 2), path=manifest.voxels_path(1), subject=1)
    own.write_bytes(entry.path, own.read_bytes(manifest.voxels_path(2)))
    sealed(own, entry)
    fails(BadDataError, r"subject-1.parquet: 9 voxels, the betas of subject 1 have 12", own, subjects=(1,))


def test_a_file_with_other_rows_than_its_manifest_says(own):
    entry = read_manifest(own).entry(manifest.session_path(1, 1))
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
    betas, none = np.ones((4, 2)), np.array([], int)
    parts = [moments(betas, np.array([0, 1])), moments(betas, none)]
    with pytest.raises(BadDataError, match="session 2 has no training trial to normalise by"):
        scaling(RULES["session"], parts, (1, 2), 2)
    with pytest.raises(BadDataError, match=r"sessions \[1, 2\] have no training trial to normalise by"):
        scaling(RULES["subject"], [moments(betas, none)] * 2, (1, 2), 2)
    mean, scale = scaling(RULES["none"], [], (1, 2), 2)
    assert (mean == 0).all()
    assert (scale == 1).all()


def test_the_same_through_s3(ray_session, s3_bucket, loaded):
    folder = Folder.at(f"s3://{s3_bucket}/data/small")
    write_shards(folder)
    trials = read(folder, subjects=(2,))[2]
    for ours, theirs in zip(trials.betas.blocks, loaded[2].betas.blocks, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(trials.mean, loaded[2].mean)
    folder.write_bytes(manifest.session_path(2, 1), b"short")
    fails(CorruptFileError, r"s3://.*session=1/part-0.parquet: 5 bytes, its manifest says", folder, subjects=(2,))


def by_hand(name: str, data: dict[str, np.ndarray], row: int, test: bool) -> np.ndarray:
    """One trial z-scored by the words of a rule, from lists of the trials it names."""
    role, betas = role_of(data["stimulus"]), data["betas"].astype(np.float64)
    train = role == ROLES.index("train")
    peers = {
        "session": train & (data["session"] == data["session"][row]),
        "subject": train,
        "subject-ddof1": train,
        "session-all": data["session"] == data["session"][row],
        "global": train,
        "global-own": role == ROLES.index("test") if test else train,
    }[name]
    values = betas[peers]
    if name.startswith("global"):
        return (betas[row] - values.mean()) / values.std()
    return (betas[row] - values.mean(axis=0)) / values.std(axis=0, ddof=1 if name == "subject-ddof1" else 0)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"none"}))
def test_each_rule_by_hand(folder, name):
    data = raw(1)
    fit, test = (ray.get(part[1]) for part in load(Query(folder, (1,), Split(), normalise=name), SHARED))
    for trials, tested in ((fit, False), (test, True)):
        z = trials.z(np.arange(len(trials.trial)))
        for row, trial in enumerate(trials.trial):
            np.testing.assert_allclose(z[row], by_hand(name, data, int(trial), tested), rtol=2e-5, atol=2e-5)


def test_rules_that_look_at_test_trials_are_known_as_leaking():
    leaking = {name for name, rule in RULES.items() if rule is not None and rule.leaks}
    assert leaking == {"session-all", "global-own"}


def test_an_unknown_rule_is_named(folder):
    fails(UnknownNameError, "unknown z-scoring rule 'sesion'. Did you mean 'session'", folder, normalise="sesion")


def test_one_pass_keeps_fit_and_test_in_memory_of_their_own(own):
    fit, test = load(Query(own, (1, 2), Split()), SHARED)
    for path in Path(own.path).rglob("subject*/*/*.parquet"):
        path.unlink()
    for subject in (1, 2):
        data = raw(subject)
        role = role_of(data["stimulus"])
        kept, held = ray.get(fit[subject]), ray.get(test[subject])
        assert not len(kept.rows("test"))
        np.testing.assert_array_equal(np.concatenate(kept.betas.blocks), data["betas"][role != ROLES.index("test")])
        np.testing.assert_array_equal(np.concatenate(held.betas.blocks), data["betas"][role == ROLES.index("test")])
        np.testing.assert_array_equal(kept.mean, held.mean)
        # A block is an object of its own: what a fit maps holds its own trials and nothing else.
        assert set(kept.betas.refs).isdisjoint(held.betas.refs)
        sizes = [len(block) for block in kept.betas.blocks]
        assert sizes == [int((kept.session == session).sum()) for session in kept.sessions]


def test_a_file_sealed_with_an_xxh3_is_compared_with_it(own):
    path = manifest.session_path(2, 1)
    content = own.read_bytes(path)
    entry = dataclasses.replace(read_manifest(own).entry(path), xxh3=xxhash.xxh3_64_hexdigest(content))
    sealed(own, entry)
    before = read(own, subjects=(2,))[2]
    np.testing.assert_array_equal(np.concatenate(before.betas.blocks), raw(2)["betas"])
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    own.write_bytes(path, bytes(damaged))
    fails(CorruptFileError, r"subject=2/session=1/part-0.parquet: xxh3 \w{16}, its manifest says \w{16}$", own)


def test_what_is_pickled_is_references(loaded):
    betas = loaded[1].betas
    assert len(pickle.dumps(Betas(arrays=betas.blocks))) > sum(block.nbytes for block in betas.blocks)
    assert betas.__reduce__()[1][1] == ()


@given(
    data=st.data(),
    trials=st.integers(2, 70),
    dtype=st.sampled_from([np.int16, np.uint8, np.int32, np.float32, np.float64]),
)
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_numpy_in_float64(data, trials, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    spread = data.draw(st.sampled_from([1, 100, 30_000]))
    betas = (rng.uniform(-1 if np.dtype(dtype).kind != "u" else 0, 1, (trials, 5)) * min(spread, 255)).astype(dtype)
    if np.dtype(dtype) == np.int16:
        betas = rng.integers(-(1 << 15), 1 << 15, (trials, 5)).astype(dtype)
    rows = np.flatnonzero(rng.random(trials) < 0.8)
    got, values = moments(betas, rows), betas[rows].astype(np.float64)
    assert got.count == len(rows)
    if len(rows):
        np.testing.assert_allclose(got.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got.squares, values.var(axis=0) * len(rows), rtol=1e-10, atol=1e-9)


@given(cuts=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_moments_of_parts_make_the_moments_of_the_whole(cuts, seed):
    betas = np.random.default_rng(seed).normal(3, 2, (40, 3))
    edges = [0, *sorted(cuts), 40]
    parts = [moments(betas, np.arange(first, last)) for first, last in itertools.pairwise(edges)]
    whole, got = moments(betas, np.arange(40)), merged(parts)
    assert got.count == 40
    np.testing.assert_allclose(got.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(got.squares, whole.squares, rtol=1e-10)


def test_integer_statistics_are_exact_and_need_no_order():
    """Sums of the largest int16 numbers, added up by Python's own integers."""
    betas = np.full((700, 2), -(1 << 15), np.int16)
    betas[::3, 1] = (1 << 15) - 1
    got = moments(betas, np.random.default_rng(0).permutation(700))
    column = [int(value) for value in betas[:, 1]]
    total, squares = sum(column), sum(value * value for value in column)
    assert got.squares.tolist() == [0.0, (700 * squares - total * total) / 700]
    assert got.mean.tolist() == [-32768.0, total / 700]
    assert isinstance(got, Moments)
