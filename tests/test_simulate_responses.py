"""Simulated voxels: their formulas by hand, the planted ncsnr recovered, and pictures decoded from them."""

from dataclasses import replace

import numpy as np
import pytest

from bench.data.simulate.brain.features import ImageFeatures, image_features
from bench.data.simulate.brain.responses import (
    AREA_NOISE_CEILING,
    MEDIAN_NCSNR,
    SATURATION,
    SubjectTruth,
    noise_ceiling,
    session_betas,
    simulate_subject,
    to_int16,
)
from bench.data.simulate.brain.tuning import pixel_share, reference_features
from bench.data.simulate.design import Design, simulate_design
from bench.data.simulate.presets import DEMO, TINY
from bench.data.simulate.scenes.sampling import draw_batch, sample_scene, stimulus_seed


@pytest.fixture(scope="module")
def reference() -> ImageFeatures:
    return reference_features(TINY)


@pytest.fixture(scope="module")
def truth(reference) -> SubjectTruth:
    return simulate_subject(TINY, 1, reference)


@pytest.fixture(scope="module")
def demo() -> SubjectTruth:
    return simulate_subject(DEMO, 8)


@pytest.fixture(scope="module")
def design() -> Design:
    return simulate_design(TINY.seed)


def simulate(truth: SubjectTruth, design: Design, sessions: range, size: int = 32):
    """Stimuli ``(trials,)``, betas of each session, and the pictures and ids of the distinct stimuli."""
    stimuli = [design.stimuli_of(truth.subject, session) for session in sessions]
    distinct, rows = np.unique(np.concatenate(stimuli), return_inverse=True)
    scenes = [sample_scene(stimulus_seed(int(stimulus), truth.preset.seed)) for stimulus in distinct]
    pictures = draw_batch(scenes, size)
    signal = truth.signal(image_features(pictures, scenes))
    blocks = np.split(signal[rows], len(stimuli))
    betas = [session_betas(truth, session, block) for session, block in zip(sessions, blocks, strict=True)]
    return np.concatenate(stimuli), betas, distinct, pictures


def published_ncsnr(stimuli: np.ndarray, betas: list[np.ndarray]) -> np.ndarray:
    """Allen et al. 2022, step by step: z-score in sessions, variance over the three showings, mean over images."""
    scored = np.concatenate([(session - session.mean(axis=0)) / session.std(axis=0) for session in betas])
    groups: dict[int, list[int]] = {}
    for trial, stimulus in enumerate(stimuli.tolist()):
        groups.setdefault(stimulus, []).append(trial)
    variances = [scored[trials].var(axis=0, ddof=1) for trials in groups.values() if len(trials) == 3]
    noise = np.mean(variances, axis=0)
    return np.sqrt(np.maximum(1 - noise, 0)) / np.sqrt(noise)


@pytest.mark.parametrize("subject", [1, 2])
def test_the_planted_ncsnr_is_recovered_from_the_betas(reference, design, subject):
    truth = simulate_subject(TINY, subject, reference)
    sessions = range(1, 9)
    stimuli, betas, _, _ = simulate(truth, design, sessions)
    estimate = published_ncsnr(stimuli, betas)
    general = truth.anatomy.labels["nsdgeneral"] > 0
    images = int((np.unique(stimuli, return_counts=True)[1] == 3).sum())
    assert images > 500
    # The noise variance of m images with three showings has a relative error of 1 / sqrt(m).
    spread = np.sqrt(1 / images) * (1 + truth.ncsnr[general] ** 2)
    deviation = (estimate[general] ** 2 - truth.ncsnr[general] ** 2) / spread
    assert abs(np.median(deviation)) < 0.5
    assert 0.6 < np.std(deviation) < 1.6
    assert np.median(estimate[general]) == pytest.approx(np.median(truth.ncsnr[general]), rel=0.06)
    assert np.median(estimate[truth.ncsnr == 0]) < 0.1


def test_planted_medians_are_those_of_nsd(demo):
    reference = reference_features(DEMO)
    truths = [simulate_subject(DEMO, subject, reference) for subject in DEMO.subjects]
    for truth, median in zip(truths, MEDIAN_NCSNR, strict=True):
        assert np.median(truth.ncsnr[truth.anatomy.labels["nsdgeneral"] > 0]) == pytest.approx(median, rel=0.01)
    for names, ceiling in AREA_NOISE_CEILING.items():
        medians = [np.median(truth.ncsnr[truth.anatomy.area("prf-visualrois", *names)]) for truth in truths]
        assert np.mean([100 * m**2 / (m**2 + 1 / 3) for m in medians]) == pytest.approx(ceiling, abs=0.3)
    published = (28.1, 28.1, 24.0, 20.8, 34.1, 26.1, 19.1, 13.3)
    np.testing.assert_allclose(noise_ceiling(np.array(MEDIAN_NCSNR), 3), published, atol=0.1)
    logs = np.log(truths[0].ncsnr[truths[0].anatomy.area("streams", "early")])
    assert 0.3 < logs.std() < 0.6


def test_noise_ceiling_volume_is_nan_outside_the_brain(truth):
    volume = truth.ncsnr_volume()
    np.testing.assert_array_equal(np.isnan(volume), ~truth.anatomy.brain)
    np.testing.assert_allclose(volume[truth.anatomy.brain], truth.ncsnr.astype(np.float32))


def test_signal_of_one_voxel_by_hand(truth, reference):
    tuning = truth.tuning
    signal = truth.signal(reference)
    for picture, voxel in ((0, 0), (5, 17), (9, signal.shape[1] - 1)):
        drive = 0.0
        for feature, weight in zip(reference.energy[picture], tuning.pool[:, voxel], strict=True):
            drive += float(feature) * float(weight)
        linear = np.concatenate([reference.channels[picture], reference.attributes[picture]])
        expected = (
            float(linear.astype(float) @ tuning.linear[:, voxel])
            + float(tuning.gain[voxel]) * drive ** float(tuning.exponent[voxel])
            + float(reference.conjunctions[picture].astype(float) @ tuning.pairs[:, voxel])
            + float(tuning.offset[voxel])
        )
        assert signal[picture, voxel] == pytest.approx(expected, abs=1e-3)


def test_signal_has_unit_variance_and_its_parts_the_wanted_shares(truth, reference):
    signal = truth.signal(reference)
    np.testing.assert_allclose(signal.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(signal.std(axis=0), 1, rtol=1e-3)
    tuning = truth.tuning
    linear = np.concatenate([reference.channels, reference.attributes], axis=1) @ tuning.linear
    curved = tuning.gain * (reference.energy @ tuning.pool) ** tuning.exponent + reference.conjunctions @ tuning.pairs
    share = curved.var(axis=0) / (curved.var(axis=0) + linear.var(axis=0))
    np.testing.assert_allclose(share, TINY.nonlinear_share, rtol=1e-3)


def mixed(features: ImageFeatures) -> ImageFeatures:
    """Features half way between each picture and the next."""
    pairs = [0.5 * (value + np.roll(value, 1, axis=0)) for value in vars(features).values()]
    return ImageFeatures(*pairs)


def test_without_a_nonlinear_share_responses_are_linear_in_pixels_and_attributes(reference):
    flat = simulate_subject(replace(TINY, nonlinear_share=0.0), 1, reference)
    assert not flat.tuning.gain.any()
    assert not flat.tuning.pairs.any()
    signal = flat.signal(reference)
    np.testing.assert_allclose(flat.signal(mixed(reference)), 0.5 * (signal + np.roll(signal, 1, axis=0)), atol=2e-4)
    curved = simulate_subject(replace(TINY, nonlinear_share=1.0), 1, reference)
    signal = curved.signal(reference)
    gap = curved.signal(mixed(reference)) - 0.5 * (signal + np.roll(signal, 1, axis=0))
    assert np.abs(gap).mean() > 0.01


def test_v1_voxels_see_their_receptive_field_only(demo):
    anatomy, scene = demo.anatomy, [sample_scene(1)]
    picture, other = draw_batch([sample_scene(1), sample_scene(3)], 64)
    columns = np.flatnonzero(anatomy.area("prf-visualrois", "V1v", "V1d")[demo.responsive])
    pixel = ((np.arange(64) + 0.5) / 64 - 0.5) * 8.4
    changes = []
    for column in columns:
        voxel = demo.responsive[column]
        x, y = np.clip([anatomy.field_x[voxel], anatomy.field_y[voxel]], -4.0, 4.0)
        far = np.hypot(pixel[None, :] - x, -pixel[:, None] - y)[..., None] > 3.0
        versions = np.stack([picture, np.where(far, picture, other), np.where(far, other, picture)])
        base, inside, outside = demo.signal(image_features(versions, scene * 3))[:, column]
        changes.append((abs(inside - base), abs(outside - base)))
    inside, outside = np.mean(changes, axis=0)
    assert inside > 10 * outside


def test_face_area_prefers_faces(demo):
    scenes = [sample_scene(seed) for seed in range(300)]
    signal = demo.signal(image_features(draw_batch(scenes, 32), scenes))
    face = np.array([any(thing.kind == "face" for thing in scene.objects) for scene in scenes])
    difference = np.abs(signal[face].mean(axis=0) - signal[~face].mean(axis=0))
    area = demo.anatomy.area("floc-faces", "OFA", "FFA-1", "FFA-2")[demo.responsive]
    assert difference[area].mean() > 2 * difference[~area].mean()


def test_pixel_share_falls_from_v1_to_the_streams(demo):
    share = pixel_share(demo.anatomy)
    means = [
        share[demo.anatomy.area("prf-visualrois", "V1v", "V1d")].mean(),
        share[demo.anatomy.area("prf-visualrois", "hV4")].mean(),
        share[demo.anatomy.area("streams", "ventral")].mean(),
    ]
    assert means[0] == 1.0
    assert means == sorted(means, reverse=True)


def test_a_session_depends_on_subject_and_number_only(truth, reference):
    signal = truth.signal(reference)[:200]
    first, second = session_betas(truth, 1, signal), session_betas(truth, 2, signal)
    again = session_betas(simulate_subject(TINY, 1), 1, signal)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (200, len(truth.anatomy.positions))
    assert first.dtype == np.float32
    assert abs(np.corrcoef(first[:, truth.ncsnr == 0].ravel(), second[:, truth.ncsnr == 0].ravel())[0, 1]) < 0.35
    assert not np.array_equal(first, second)


def test_betas_have_the_scale_of_percent_signal_change(demo):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((750, demo.responsive.size)).astype(np.float32)
    betas = session_betas(demo, 3, signal)
    assert np.median(betas.std(axis=0)) == pytest.approx(3.0, rel=0.05)
    assert np.abs(betas).max() <= SATURATION
    stored = to_int16(betas)
    assert stored.dtype == np.int16
    np.testing.assert_allclose(stored / 300, betas, atol=0.5 / 300 + 1e-5)
    extreme = session_betas(replace(demo, spread=demo.spread * 100), 3, signal)
    assert to_int16(extreme).max() == round(SATURATION * 300)
    assert to_int16(extreme).min() == -round(SATURATION * 300)


def test_noise_drifts_and_is_shared_between_neighbours(reference):
    quiet = simulate_subject(replace(TINY, drift_share=0.0, common_share=0.0), 1, reference)
    drifting = simulate_subject(replace(TINY, drift_share=0.4, common_share=0.0), 1, reference)
    sharing = simulate_subject(replace(TINY, drift_share=0.0, common_share=0.4), 1, reference)
    still = np.zeros((750, quiet.responsive.size), np.float32)

    def lag_one(truth: SubjectTruth) -> float:
        betas = session_betas(truth, 1, still)[:, truth.ncsnr == 0]
        scored = (betas - betas.mean(axis=0)) / betas.std(axis=0)
        return float((scored[1:] * scored[:-1]).mean())

    def neighbours(truth: SubjectTruth) -> float:
        correlations = np.corrcoef(session_betas(truth, 1, still), rowvar=False)
        positions = truth.anatomy.positions
        close = np.flatnonzero((np.diff(positions, axis=0) == [0, 0, 1]).all(axis=1))
        return float(correlations[close, close + 1].mean())

    assert abs(lag_one(quiet)) < 0.02
    assert lag_one(drifting) == pytest.approx(0.4, abs=0.03)
    assert abs(neighbours(quiet)) < 0.02
    assert 0.2 < neighbours(sharing) <= 0.42


def test_pictures_of_the_noisiest_subject_can_be_decoded(demo):
    stimuli, betas, distinct, pictures = simulate(demo, simulate_design(DEMO.seed), range(1, 3), 64)
    design = simulate_design(DEMO.seed)
    voxels = demo.anatomy.labels["nsdgeneral"] > 0
    scored = np.concatenate([(session - session.mean(axis=0)) / session.std(axis=0) for session in betas])[:, voxels]
    pixels = pictures.reshape(len(pictures), 16, 4, 16, 4, 3).mean(axis=(2, 4)).reshape(len(pictures), -1)
    shared = np.isin(distinct, design.sharedix[0] - 1)
    rows = np.searchsorted(distinct, stimuli)
    train = ~shared[rows]
    mean = pixels[rows[train]].mean(axis=0)
    gram = scored[train].T @ scored[train] + 1000 * np.eye(scored.shape[1])
    weights = np.linalg.solve(gram, scored[train].T @ (pixels[rows[train]] - mean))
    test = np.flatnonzero(shared)
    assert len(test) == 103
    predicted = np.stack([scored[rows == row].mean(axis=0) for row in test]) @ weights + mean
    gain = [
        np.corrcoef(guess, picture)[0, 1] - np.corrcoef(mean, picture)[0, 1]
        for guess, picture in zip(predicted, pixels[test], strict=True)
    ]
    draws = np.random.default_rng(0).choice(gain, (2000, len(gain))).mean(axis=1)
    assert np.quantile(draws, 0.025) > 0.1
    table = np.corrcoef(predicted, pixels[test])[: len(test), len(test) :]
    two_way = (table < np.diag(table)[:, None]).sum() / (len(test) * (len(test) - 1))
    assert two_way > 0.8


def test_bad_requests_are_refused(truth):
    with pytest.raises(ValueError, match="has no subject 3; allowed are 1 to 2"):
        simulate_subject(TINY, 3)
    with pytest.raises(ValueError, match="expected \\(trials, "):
        session_betas(truth, 1, np.zeros((10, 3), np.float32))
