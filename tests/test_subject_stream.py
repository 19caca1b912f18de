"""The batches an encoder sees: every trial once, in an order the seed gives, with the targets of its picture."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import ray
import torch
from stream_shards import LABEL_NAMES, TARGET_SHAPE, latents, target_table, trials_of

from bench.core.errors import MissingDataError, UnknownNameError
from bench.data.shards.targets import TargetTable
from bench.data.splits import ROLES
from bench.data.stream.resident import DeviceGather, Resident, resident
from bench.data.stream.trials import Betas, SubjectTrials
from bench.data.stream.turns import in_turn, turns
from bench.fitting.subject_stream import SubjectStream

TRIALS = trials_of(1)
BETAS = np.concatenate(TRIALS.betas.blocks)


def stream(shuffle_seed=None, targets=None, trials=TRIALS, **options) -> SubjectStream:
    return SubjectStream(trials, {"z": target_table()} if targets is None else targets, shuffle_seed, **options)


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
    np.testing.assert_array_equal(voxels, BETAS[chosen])
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
    np.testing.assert_array_equal(torch.cat([b.voxels for b in batches]).numpy(), BETAS[TRIALS.role == 0])


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


def showings(role: str) -> dict[int, list[int]]:
    """The rows of each stimulus of a role, in the order of first showing."""
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero(TRIALS.role == ROLES.index(role)).tolist():
        found.setdefault(int(TRIALS.stimulus[row]), []).append(row)
    return found


@pytest.mark.parametrize("role", ["train", "validation"])
@pytest.mark.parametrize("size", [None, 3])
def test_mean_samples_are_the_means_of_a_stimulus_trials(role, size):
    made, expected = stream(averaging="mean"), showings(role)
    assert any(len(rows) > 1 for rows in expected.values())
    voxels, targets, stimuli = rows_of(made, role, -1, size)
    assert stimuli.tolist() == list(expected)
    assert made.n_trials(role) == len(expected)
    for row, (stimulus, trials) in enumerate(expected.items()):
        np.testing.assert_allclose(voxels[row], BETAS[trials].astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(targets[row], latents()[stimulus].reshape(TARGET_SHAPE), rtol=1e-6)


def test_a_random_repeat_is_one_of_the_stimulus_trials_drawn_anew_for_every_epoch():
    made, expected = stream(averaging="random-repeat"), showings("train")
    chosen: dict[int, set[int]] = {stimulus: set() for stimulus in expected}
    for seed in range(12):
        voxels, _, stimuli = rows_of(made, "train", seed, 8)
        assert sorted(stimuli.tolist()) == sorted(expected)
        for row, stimulus in zip(voxels, stimuli.tolist(), strict=True):
            (trial,) = [trial for trial in expected[stimulus] if np.array_equal(BETAS[trial], row)]
            chosen[stimulus].add(trial)
    assert all(chosen[stimulus] == set(trials) for stimulus, trials in expected.items())
    for one, other in zip(rows_of(made, "train", 4), rows_of(made, "train", 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_random_repeats_without_a_seed_are_first_showings_and_validate_on_means():
    made = stream(averaging="random-repeat")
    np.testing.assert_array_equal(
        rows_of(made, "train", -1)[0], BETAS[[trials[0] for trials in showings("train").values()]]
    )
    for one, other in zip(
        rows_of(made, "validation", -1), rows_of(stream(averaging="mean"), "validation", -1), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_trials_without_a_stimulus_are_never_averaged_together():
    trials = dataclasses.replace(TRIALS, stimulus=np.full_like(TRIALS.stimulus, -1))
    batches = list(stream(trials=trials, targets={}, averaging="mean").batches("unlabelled", -1))
    np.testing.assert_array_equal(torch.cat([b.voxels for b in batches]), BETAS[TRIALS.role == 0])


def test_an_epoch_is_numpys_permutation_of_the_roles_trials():
    """The order that fits were recorded with: it may not change without a new version of fits."""
    rows = np.random.default_rng([5, 1]).permutation(np.flatnonzero(TRIALS.role == 0))
    np.testing.assert_array_equal(rows_of(stream(), "train", 5, 7)[0], BETAS[rows])


def test_a_batch_that_is_kept_is_never_written_over():
    made = stream()
    kept = [(batch.voxels, batch.voxels.clone(), batch.voxels[1:]) for batch in made.batches("train", 1, 8)]
    again = list(made.batches("train", 2, 8))
    assert len(again) == len(kept)
    for voxels, copy, part in kept:
        assert torch.equal(voxels, copy)
        assert torch.equal(part, copy[1:])


def test_memory_of_batches_is_used_again():
    made = stream()
    places = [batch.voxels.data_ptr() for batch in made.batches("train", 1, 8)]
    assert len(places) > 5
    assert len(set(places)) <= 3


def test_threads_change_no_number():
    alone = rows_of(stream(), "train", 3, 32)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = rows_of(stream(), "train", 3, 32)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def raw_trials() -> SubjectTrials:
    """Int16 betas of two sessions with scales of their own, a constant voxel among them."""
    rng, sessions = np.random.default_rng(0), len(TRIALS.sessions)
    sizes = [int((TRIALS.session == number).sum()) for number in TRIALS.sessions]
    scale = rng.uniform(0, 2, (sessions, TRIALS.n_voxels)).astype(np.float32)
    scale[:, 3] = 0
    return dataclasses.replace(
        TRIALS,
        betas=Betas(arrays=tuple(rng.integers(-900, 900, (n, TRIALS.n_voxels)).astype(np.int16) for n in sizes)),
        mean=rng.normal(0, 50, scale.shape).astype(np.float32),
        scale=scale,
    )


@pytest.mark.parametrize("averaging", ["single", "mean", "random-repeat"])
@pytest.mark.parametrize("role", ["train", "validation"])
def test_what_lives_on_the_device_gives_the_streams_numbers_bit_for_bit(raw_trials, averaging, role):
    for seed in (-1, 4):
        made = [
            stream(trials=raw_trials, averaging=averaging, resident=place)
            for place in (None, Resident(torch.device("cpu")))
        ]
        streamed, resident = (rows_of(each, role, seed, 9) for each in made)
        for one, other in zip(streamed, resident, strict=True):
            np.testing.assert_array_equal(one, other)


def test_resident_betas_keep_their_type_and_are_read_once(raw_trials):
    gather = DeviceGather(raw_trials, torch.device("cpu"))
    assert gather._betas.dtype == torch.int16
    expected = raw_trials.z(np.array([5, 0, 77]))
    np.testing.assert_array_equal(gather.rows(np.array([5, 0, 77])), expected)


def test_data_never_move_to_a_device_that_is_the_host(raw_trials):
    assert resident(torch.device("cpu"), [raw_trials], []) is None


def test_data_move_to_a_device_with_room_for_them(raw_trials, monkeypatch):
    table = target_table().values
    needed = sum(block.nbytes for block in raw_trials.betas.blocks) + table.nbytes
    for free, expected in ((needed * 5, True), (needed * 5 - 5, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert (resident(torch.device("cuda"), [raw_trials], [table]) is not None) is expected


def test_subjects_share_one_copy_of_a_target_table_on_the_device(raw_trials):
    place, tables = Resident(torch.device("cpu")), {"z": target_table()}
    for subject in (1, 2):
        trials = dataclasses.replace(raw_trials, subject=subject)
        list(stream(trials=trials, targets=tables, resident=place).batches("train", 1))
    assert len(place._tables) == 1


def test_a_run_of_targets_from_the_device():
    for size in (None, 11):
        made = [stream(resident=place) for place in (None, Resident(torch.device("cpu")))]
        streamed, there = ([b.targets["z"] for b in m.batches("train", 2, size, {"z": (1, 4)})] for m in made)
        assert torch.equal(torch.cat(streamed), torch.cat(there))
        assert streamed[0].shape[1] == 3


def test_the_shards_own_order_always_comes_from_the_host(raw_trials):
    made = stream(trials=raw_trials, resident=Resident(torch.device("meta")))
    for batch in made.batches("train", -1):
        assert batch.voxels.device.type == "cpu"
    assert next(made.batches("train", 0)).voxels.device.type == "meta"


def in_workers(shares, seeds: list[int]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """What each of several training workers, processes of their own, sees of each epoch: voxels and stimuli."""

    @ray.remote(num_cpus=0.5)
    def epochs(made: SubjectStream) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for seed in seeds:
            batches = [(b.voxels.numpy(), b.stimuli.numpy()) for b in made.batches("train", seed, 16)]
            found.append(tuple(np.concatenate(part) for part in zip(*batches, strict=True)))
        return found

    return ray.get([epochs.remote(stream(share=share)) for share in shares])


def dealt(samples: int, size: int) -> list:
    """Two workers' shares of an epoch, as Ray Train splits them."""
    shares = in_turn().configure(
        {"turns": turns(samples, size)}, world_size=2, worker_handles=None, worker_node_ids=None
    )
    return [share["turns"] for share in shares]


@pytest.mark.usefixtures("ray_session")
def test_two_workers_share_an_epoch_and_together_see_each_sample_once():
    seeds = [3, 8]
    first, second = in_workers(dealt(stream().n_trials("train"), 16), seeds)
    for epoch, seed in enumerate(seeds):
        voxels, _, stimuli = rows_of(stream(), "train", seed, 16)
        mine, theirs = first[epoch], second[epoch]
        # Workers take their steps together, so each gets as many batches: of an odd number the last is left out.
        batches = math.ceil(len(voxels) / 16)
        assert batches % 2
        assert len(mine[0]) == len(theirs[0]) == batches // 2 * 16
        # Batches are dealt in turn: the sequence is the one that a single worker would see.
        blocks = [range(start, start + 16) for start in range(0, batches // 2 * 32, 16)]
        for number, share in enumerate((mine, theirs)):
            rows = np.concatenate([np.array(block) for block in blocks[number::2]])
            np.testing.assert_array_equal(share[0], voxels[rows])
            np.testing.assert_array_equal(share[1], stimuli[rows])


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("role", ["train", "validation"])
def test_passes_that_sum_see_all_trials_on_every_worker(role):
    share, _ = dealt(10, 5)
    np.testing.assert_array_equal(rows_of(stream(share=share), role, -1)[0], rows_of(stream(), role, -1)[0])


@pytest.mark.usefixtures("ray_session")
def test_dealing_leaves_the_settings_of_other_datasets_alone():
    before = ray.data.DataContext.get_current()
    dealt(10, 5)
    assert ray.data.DataContext.get_current() is before
    assert not before.execution_options.preserve_order
