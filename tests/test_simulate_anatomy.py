"""Simulated brains and presets: voxel counts, label conventions, receptive fields, refused sizes."""

from dataclasses import replace

import numpy as np
import pytest

from bench.data.simulate.brain.anatomy import ROI_LABELS, STREAMS, V1, V2, Anatomy, build_anatomy
from bench.data.simulate.design import SESSIONS
from bench.data.simulate.presets import BOXES, DEMO, FULL, NSDGENERAL, TINY
from bench.data.simulate.scenes.sampling import FIRST_TRAINING_DESIGN


@pytest.fixture(scope="module", params=[1, 6, 8])
def demo(request) -> tuple[int, Anatomy]:
    return request.param, build_anatomy(DEMO, request.param)


def test_full_preset_has_the_true_dimensions():
    assert FULL.sessions == SESSIONS == (40, 40, 32, 30, 40, 32, 40, 30)
    assert FULL.nsdgeneral == NSDGENERAL
    assert FULL.boxes == BOXES
    assert FULL.trials_per_session == 750
    anatomy = build_anatomy(FULL, 5)
    assert anatomy.shape == (79, 97, 78)
    assert (anatomy.labels["nsdgeneral"] > 0).sum() == 13_039
    assert anatomy.area("prf-visualrois", "V1v", "V1d").sum() == V1[4]
    assert anatomy.area("prf-visualrois", "V2v", "V2d").sum() == V2[4]
    for name, counts in STREAMS.items():
        assert anatomy.area("streams", name).sum() == counts[4]


def test_demo_scales_every_area(demo):
    subject, anatomy = demo
    scale = DEMO.nsdgeneral[subject - 1] / NSDGENERAL[subject - 1]
    assert (anatomy.labels["nsdgeneral"] > 0).sum() == round(NSDGENERAL[subject - 1] / 16)
    assert anatomy.area("prf-visualrois", "V1v", "V1d").sum() == round(V1[subject - 1] * scale)
    assert anatomy.area("streams", "early").sum() == round(STREAMS["early"][subject - 1] * scale)


def test_labels_follow_the_convention_of_the_roi_files(demo):
    _, anatomy = demo
    assert set(anatomy.labels) == set(ROI_LABELS)
    not_cortex = anatomy.labels["nsdgeneral"] == -1
    for roi, names in ROI_LABELS.items():
        labels = anatomy.labels[roi]
        assert labels.min() == -1
        assert labels.max() <= len(names)
        np.testing.assert_array_equal(labels == -1, not_cortex)
    np.testing.assert_array_equal(anatomy.labels["prf-eccrois"] > 0, anatomy.labels["prf-visualrois"] > 0)
    assert (anatomy.labels["nsdgeneral"][anatomy.labels["prf-visualrois"] > 0] == 1).all()
    for roi in ("floc-faces", "floc-places", "floc-bodies"):
        assert set(np.unique(anatomy.labels[roi])) >= {-1, 0, 1, 2, 3}


def test_volumes_hold_the_labels_at_the_positions(demo):
    _, anatomy = demo
    volume = anatomy.roi_volume("streams")
    assert volume.shape == anatomy.shape
    np.testing.assert_array_equal(volume[anatomy.brain], anatomy.labels["streams"])
    assert (volume[~anatomy.brain] == -1).all()
    left, right = (anatomy.roi_volume("streams", side) for side in ("lh", "rh"))
    np.testing.assert_array_equal(np.maximum(left, right), volume)
    middle = (anatomy.shape[0] - 1) / 2
    x = np.indices(anatomy.shape)[0]
    assert (left[x > middle] == -1).all()  # x grows to the right
    assert (right[x <= middle] == -1).all()


def test_positions_are_in_canonical_order_and_areas_lie_where_they_should(demo):
    _, anatomy = demo
    np.testing.assert_array_equal(np.argwhere(anatomy.brain), anatomy.positions)
    y, z = anatomy.positions[:, 1], anatomy.positions[:, 2]
    in_v1 = anatomy.area("prf-visualrois", "V1v", "V1d")
    assert y[in_v1].mean() < y[anatomy.area("streams", "ventral")].mean()
    assert z[anatomy.area("streams", "ventral")].mean() < z[anatomy.area("streams", "lateral")].mean()
    assert z[anatomy.area("streams", "lateral")].mean() < z[anatomy.area("streams", "parietal")].mean()
    assert z[anatomy.area("prf-visualrois", "V1v")].mean() < z[anatomy.area("prf-visualrois", "V1d")].mean()


def test_receptive_fields_are_contralateral_and_ventral_ones_above(demo):
    _, anatomy = demo
    visual = anatomy.labels["prf-visualrois"] > 0
    assert (anatomy.field_x[visual & anatomy.right] <= 0).all()
    assert (anatomy.field_x[visual & ~anatomy.right] >= 0).all()
    assert (anatomy.field_y[anatomy.area("prf-visualrois", "V1v", "V2v", "V3v")] >= 0).all()
    assert (anatomy.field_y[anatomy.area("prf-visualrois", "V1d", "V2d", "V3d")] <= 0).all()
    eccentricity = np.hypot(anatomy.field_x, anatomy.field_y)
    edges = [0, 0.5, 1, 2, 4, np.inf]
    for label in range(1, 6):
        inside = anatomy.labels["prf-eccrois"] == label
        assert ((eccentricity[inside] >= edges[label - 1]) & (eccentricity[inside] <= edges[label])).all()
    v1, v4 = anatomy.area("prf-visualrois", "V1v", "V1d"), anatomy.area("prf-visualrois", "hV4")
    assert np.median(anatomy.field_size[v1]) < np.median(anatomy.field_size[v4])


def test_anatomy_depends_on_subject_and_seed_only():
    first, again = build_anatomy(TINY, 1), build_anatomy(TINY, 1)
    np.testing.assert_array_equal(first.field_x, again.field_x)
    other = build_anatomy(replace(TINY, seed=1), 1)
    assert not np.array_equal(first.field_x, other.field_x)


def test_bad_requests_are_refused():
    anatomy = build_anatomy(TINY, 1)
    with pytest.raises(ValueError, match="allowed are both, lh, rh"):
        anatomy.roi_volume("streams", "left")
    with pytest.raises(ValueError, match="fewer than the 900 of nsdgeneral"):
        build_anatomy(replace(TINY, nsdgeneral=(900, 112)), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sessions": (1, 1, 1)}, "3 session numbers, 2 boxes and 2 voxel counts"),
        ({"sessions": (0, 1)}, "allowed are 1 to 40"),
        ({"sessions": (41, 1)}, "allowed are 1 to 40"),
        ({"trials_per_session": 751}, "allowed are 1 to 750"),
        ({"nonlinear_share": 1.5}, "nonlinear_share is 1.5"),
        ({"drift_share": 0.6, "common_share": 0.4}, "sum to less than 1"),
        ({"seed": FIRST_TRAINING_DESIGN}, "seed is 1000000"),
    ],
)
def test_impossible_presets_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_presets_know_their_size():
    assert TINY.subjects == (1, 2)
    assert DEMO.subjects == tuple(range(1, 9))
    voxels = sum(2 * x * y * z for x, y, z in DEMO.boxes)
    assert DEMO.bytes_of_betas == 2 * 750 * voxels
