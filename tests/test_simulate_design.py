"""The simulated experiment: NSD's counts, shapes and invariants, each recounted trial by trial."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from bench.data.simulate.design import SESSIONS, SHOWN, Design, cumulative_shown, simulate_design

# After n sessions: trials, images seen, seen at least twice, three times; shared seen, twice, three times; private
# seen; shared trials, private trials. None where the published table has no entry.
TABLE = {
    40: (30_000, 10_000, 10_000, 10_000, 1_000, 1_000, 1_000, 9_000, 3_000, 27_000),
    37: (27_750, 9_841, 9_489, 8_420, 982, 949, 839, 8_859, 2_770, 24_980),
    32: (24_000, 9_411, 8_355, 6_234, 930, 827, 614, 8_481, 2_371, 21_629),
    30: (22_500, 9_209, 7_846, 5_445, 907, 766, 515, 8_302, 2_188, 20_312),
    29: (21_750, 9_082, 7_587, 5_081, 894, 738, 481, 8_188, 2_113, 19_637),
    27: (20_250, 8_779, 7_047, 4_424, 872, 700, 413, 7_907, 1_985, 18_265),
    20: (15_000, None, None, None, 748, None, None, 6_708, 1_491, 13_509),
    10: (7_500, None, None, None, 416, None, None, 4_073, 697, 6_803),
    5: (3_750, None, None, None, 225, None, None, 2_267, 340, 3_410),
    2: (1_500, None, None, None, 103, None, None, 981, 142, 1_358),
    1: (750, None, None, None, 47, None, None, 536, 62, 688),
}


@pytest.fixture(scope="module")
def design() -> Design:
    return simulate_design(11)


def count_row(ordering: np.ndarray, sessions: int) -> tuple[int, ...]:
    """One row of the table, counted trial by trial."""
    times: dict[int, int] = {}
    for image in ordering[: 750 * sessions].tolist():
        times[image] = times.get(image, 0) + 1
    shared = [count for image, count in times.items() if image <= 1000]
    private = [count for image, count in times.items() if image > 1000]
    at_least = [sum(count >= p for count in times.values()) for p in (1, 2, 3)]
    shared_at_least = [sum(count >= p for count in shared) for p in (1, 2, 3)]
    return (sum(times.values()), *at_least, *shared_at_least, len(private), sum(shared), sum(private))


@pytest.mark.parametrize("sessions", TABLE)
@pytest.mark.parametrize("seed", [0, 11])
def test_the_counts_of_nsd_come_out_exactly(seed, sessions):
    counted = count_row(simulate_design(seed).masterordering[0], sessions)
    for got, published in zip(counted, TABLE[sessions], strict=True):
        assert published in (None, got)


def test_every_image_is_shown_three_times_at_most_in_750_trials_a_session(design):
    assert np.array_equal(np.bincount(design.masterordering[0]), [0] + [3] * 10_000)
    table = cumulative_shown()
    np.testing.assert_array_equal(table.sum(axis=1), 750 * np.arange(41))
    assert (np.diff(table, axis=0) >= 0).all()
    assert (table[:, 0] >= table[:, 1]).all()
    assert (table[:, 1] >= table[:, 2]).all()
    for sessions, (shared, private) in SHOWN.items():
        np.testing.assert_array_equal(table[sessions], (*shared, *private))


def test_fields_have_the_shapes_and_types_of_the_file(design):
    expected = {
        "masterordering": ((1, 30_000), np.uint16),
        "subjectim": ((8, 10_000), np.int32),
        "sharedix": ((1, 1_000), np.int32),
        "basiccnt": ((3, 40), np.uint16),
        "stimpattern": ((40, 12, 75), np.uint8),
    }
    for name, (shape, dtype) in expected.items():
        assert getattr(design, name).shape == shape
        assert getattr(design, name).dtype == dtype


def test_shared_images_are_common_and_private_ones_disjoint(design):
    for images in design.subjectim:
        np.testing.assert_array_equal(images[:1000], design.sharedix[0])
    assert (np.diff(design.sharedix[0]) > 0).all()
    private = design.subjectim[:, 1000:]
    everything = np.concatenate([design.sharedix[0], private.ravel()])
    np.testing.assert_array_equal(np.sort(everything), np.arange(1, 73_001))


def test_basiccnt_recounts_each_session(design):
    for session in range(40):
        trials = design.masterordering[0, session * 750 : (session + 1) * 750].tolist()
        times = [trials.count(image) for image in set(trials)]
        assert [times.count(p) for p in (1, 2, 3)] == design.basiccnt[:, session].tolist()
    np.testing.assert_array_equal(np.array([1, 2, 3]) @ design.basiccnt, np.full(40, 750))


def test_repetition_within_sessions_resembles_nsd(design):
    once, twice, thrice = design.basiccnt.mean(axis=1)
    assert 420 < once < 460
    assert 90 < twice < 120
    assert 28 < thrice < 40
    immediate = np.sum(np.diff(design.masterordering[0].astype(int)) == 0)
    assert 5 <= immediate <= 80  # NSD has 38


def test_runs_have_63_and_62_images_between_blanks(design):
    pattern = design.stimpattern
    np.testing.assert_array_equal(pattern.sum(axis=2), np.tile([63, 62], (40, 6)))
    assert pattern.sum() == 30_000
    for run, last in ((0, 70), (1, 69)):
        for slots in pattern[:, run::2].reshape(-1, 75):
            shown = np.flatnonzero(slots)
            assert (shown[0], shown[-1]) == (3, last)
            assert np.diff(shown).max() == 2  # blanks never follow one another


def test_stimuli_of_a_session_go_through_the_subjects_list(design):
    for subject, session in ((1, 1), (8, 30), (3, 40)):
        expected = [
            int(design.subjectim[subject - 1, int(index) - 1]) - 1
            for index in design.masterordering[0][(session - 1) * 750 : session * 750]
        ]
        assert design.stimuli_of(subject, session).tolist() == expected
    shared = set((design.sharedix[0] - 1).tolist())
    assert len(shared & set(design.stimuli_of(2, 1).tolist())) == 47
    same = np.isin(design.stimuli_of(1, 1), list(shared))
    np.testing.assert_array_equal(design.stimuli_of(1, 1)[same], design.stimuli_of(2, 1)[same])


def test_repeats_count_the_showings_so_far(design):
    seen: dict[int, int] = {}
    for session in range(1, 41):
        told = design.repeats(session)
        for image, repeat in zip(design.stimuli_of(5, session).tolist(), told.tolist(), strict=True):
            assert repeat == seen.get(image, 0)
            seen[image] = repeat + 1
    assert (np.diff(design.showings, axis=1) > 0).all()


def test_a_seed_fixes_the_design(design):
    again = simulate_design(11)
    np.testing.assert_array_equal(design.masterordering, again.masterordering)
    np.testing.assert_array_equal(design.stimpattern, again.stimpattern)
    assert not np.array_equal(design.subjectim, simulate_design(12).subjectim)


@pytest.mark.parametrize(("subject", "session"), [(0, 1), (9, 1), (1, 0), (1, 41)])
def test_out_of_range_is_refused(design, subject, session):
    with pytest.raises(ValueError, match=r"allowed are 1 to (8|40)"):
        design.stimuli_of(subject, session)


def test_sessions_are_those_of_nsd():
    assert SESSIONS == (40, 40, 32, 30, 40, 32, 40, 30)
    assert sum(SESSIONS) * 750 == 213_000


def test_the_real_design_has_the_same_counts_and_form(design):
    path = os.environ.get("RECONBENCH_NSD_EXPDESIGN")
    if not path:
        pytest.skip("set RECONBENCH_NSD_EXPDESIGN to a copy of nsd_expdesign.mat to compare with it")
    real = {name: value for name, value in loadmat(Path(path)).items() if not name.startswith("_")}
    assert set(real) == set(Design.__dataclass_fields__)
    for name, value in real.items():
        ours = getattr(design, name)
        assert (ours.shape, ours.dtype) == (value.shape, value.dtype)
    for sessions, (shared, private) in SHOWN.items():
        times = np.bincount(real["masterordering"][0, : 750 * sessions].astype(int) - 1, minlength=10_000)
        for group, expected in ((times[:1000], shared), (times[1000:], private)):
            assert tuple(int((group >= p).sum()) for p in (1, 2, 3)) == expected
        assert sessions == 0 or count_row(real["masterordering"][0], sessions) == count_row(
            design.masterordering[0], sessions
        )
