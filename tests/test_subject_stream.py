"""The batches an encoder sees: every trial once, in an order the seed gives, with the targets of its picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from stream_shards import LABEL_NAMES, TARGET_SHAPE, latents, target_table, trials_of

from bench.data.splits import ROLES
from bench.errors import MissingDataError, UnknownNameError
from bench.fit.subject_stream import SubjectStream, TargetTable

TRIALS = trials_of(1)


def stream(shuffle_seed=None, targets=None, trials=TRIALS) -> SubjectStream:
    return SubjectStream(trials, {"z": target_table()} if targets is None else targets, shuffle_seed)


def rows_of(made: SubjectStream, role, seed, size=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All batches of a role one after another: voxels, targets and stimuli."""
    batches = list(made.batches(role, seed, size))
    assert all(batch.subject == 1 for batch in batches)
    return (
        torch.cat([batch.voxels for batch in batches]).numpy(),
        torch.cat([batch.targets["z"] for batch in batches]).numpy(),
        torch.cat([batch.stimuli for batch in batches]).numpy(),
    )


@pytest.mark.parametrize("role", ["train", "validation"])
@pytest.mark.parametrize("size", [None, 1, 7, 1000])
def test_the_shards_own_order(role, size):
    chosen = TRIALS.role == ROLES.index(role)
    voxels, targets, stimuli = rows_of(stream(), role, -1, size)
    np.testing.assert_array_equal(voxels, TRIALS.betas[chosen])
    np.testing.assert_array_equal(stimuli, TRIALS.stimulus[chosen])
    for row, stimulus in enumerate(TRIALS.stimulus[chosen]):
        np.testing.assert_allclose(targets[row], latents()[stimulus].reshape(TARGET_SHAPE), rtol=1e-6)


def test_types_are_those_of_the_contract():
    batch = next(iter(stream().batches("train", 3, 4)))
    assert batch.voxels.dtype == torch.float32
    assert batch.stimuli.dtype == torch.int64
    assert batch.targets["z"].dtype == torch.float32
    assert (batch.voxels.shape, batch.targets["z"].shape) == ((4, 12), (4, *TARGET_SHAPE))


def test_sizes_of_batches_and_counts():
    made = stream()
    count = made.n_trials("train")
    assert count == int((TRIALS.role == 0).sum())
    sizes = [len(batch.stimuli) for batch in made.batches("train", 0, 32)]
    assert sizes[:-1] == [32] * (count // 32)
    assert sum(sizes) == count


def test_a_seed_gives_an_order_that_covers_every_row_once():
    plain = rows_of(stream(), "train", -1)
    first, again, other = (rows_of(stream(), "train", seed) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    for shuffled in (first, other):
        order = np.lexsort(shuffled[0].T)
        expected = np.lexsort(plain[0].T)
        for a, b in zip(shuffled, plain, strict=True):
            np.testing.assert_array_equal(a[order], b[expected])


def test_the_order_does_not_depend_on_the_batch_size():
    small, large = rows_of(stream(), "train", 5, 3), rows_of(stream(), "train", 5, 50)
    np.testing.assert_array_equal(small[0], large[0])


def test_subjects_have_their_own_orders():
    other = dataclasses.replace(TRIALS, subject=2)
    ours = rows_of(stream(), "train", 5)[2]
    theirs = np.concatenate([b.stimuli.numpy() for b in stream(trials=other).batches("train", 5)])
    assert sorted(ours) == sorted(theirs)
    assert not np.array_equal(ours, theirs)


def test_unlabelled_trials_are_the_training_trials_without_targets():
    batches = list(stream().batches("unlabelled", -1))
    assert stream().n_trials("unlabelled") == stream().n_trials("train")
    assert all(batch.targets == {} for batch in batches)
    np.testing.assert_array_equal(torch.cat([b.voxels for b in batches]).numpy(), TRIALS.betas[TRIALS.role == 0])


def test_shuffled_pairs_keep_betas_and_permute_pictures_within_each_role():
    for role in ("train", "validation"):
        voxels, targets, stimuli = rows_of(stream(), role, -1)
        moved = rows_of(stream(shuffle_seed=0), role, -1)
        np.testing.assert_array_equal(moved[0], voxels)
        np.testing.assert_array_equal(moved[2], stimuli)
        assert (moved[1] != targets).any(axis=(1, 2)).mean() > 0.9
        of_picture = {s: moved[1][stimuli == s] for s in np.unique(stimuli)}
        assert all((t == t[0]).all() for t in of_picture.values()), "repeats of a picture get one target"
        unique = np.unique(targets.reshape(len(targets), -1), axis=0)
        assert np.array_equal(np.unique(moved[1].reshape(len(targets), -1), axis=0), unique)


def test_shuffling_follows_its_seed():
    first, again, other = (rows_of(stream(shuffle_seed=s), "train", -1)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_picture_without_target_is_named():
    gone = [int(TRIALS.stimulus[TRIALS.role == 0][0]), 99]
    keep = ~np.isin(np.arange(100), gone)
    table = TargetTable(target_table().stimulus[keep], target_table().values[keep])
    with pytest.raises(MissingDataError, match=rf"no target for stimuli \[{gone[0]}\]; rerun the targets stage"):
        list(stream(targets={"z": table}).batches("train", -1))


def test_targets_are_float32_whatever_the_shards_hold():
    table = TargetTable(np.array([3, 8]), np.array([[1.5], [2.5]], np.float16))
    out = table.of(np.array([8, 3, 8]))
    assert out.dtype == np.float32
    assert out.tolist() == [[2.5], [1.5], [2.5]]
    with pytest.raises(MissingDataError, match=r"\[0, 9\]"):
        table.of(np.array([0, 9, 3]))


def test_a_slice_of_the_targets_first_axis():
    table = TargetTable(np.arange(2), np.arange(2 * 5 * 3).reshape(2, 5, 3))
    np.testing.assert_array_equal(table.sliced((1, 3)).values, table.values[:, 1:3])
    assert table.sliced(None) is table


def test_coordinates_are_the_subjects():
    np.testing.assert_array_equal(stream().coordinates, TRIALS.coordinates)
    assert (stream().n_voxels, stream().subject) == (12, 1)


def test_runs_deliver_only_the_targets_asked_for():
    made = stream(targets={"z": target_table(), "c": target_table()})
    whole = np.concatenate([batch.targets["z"].flatten(1) for batch in made.batches("train", 3, 32)])
    parts = list(made.batches("train", 3, 32, {"z": (2, 5)}))
    assert all(set(batch.targets) == {"z"} for batch in parts)
    np.testing.assert_array_equal(np.concatenate([batch.targets["z"] for batch in parts]), whole[:, 2:5])
    assert all(batch.targets == {} for batch in made.batches("train", -1, 32, {}))


def test_a_roi_expression_gives_the_voxel_columns_of_its_labels():
    made = SubjectStream(TRIALS, {}, None, LABEL_NAMES)
    atlas, names = next(iter(LABEL_NAMES.items()))
    label, number = next((name, number) for name, number in names.items() if (TRIALS.labels[atlas] == number).any())
    expected = np.flatnonzero(TRIALS.labels[atlas] == number)
    np.testing.assert_array_equal(made.columns(f"{atlas}:{label}"), expected)
    with pytest.raises(UnknownNameError, match="unknown atlas"):
        made.columns("nowhere:1")
