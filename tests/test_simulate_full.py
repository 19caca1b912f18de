"""The simulated NSD that goes straight into shards: counts of NSD, the planted noise ceiling, the files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import ray

from bench import simulate as stage
from bench.core.errors import MissingDataError, OptionError, UnknownNameError
from bench.core.storage import Folder
from bench.data.shard_set import open_data, pictures, scored_pictures
from bench.data.shards.manifest import read_manifest, session_path
from bench.data.shards.pictures import png_of
from bench.data.simulate.brain.responses import MEDIAN_NCSNR, Voxels, session_betas
from bench.data.simulate.design import SHARED, TRIALS
from bench.data.simulate.low_rank import RANK, LowRankNsd, LowRankOptions, latents, low_rank_subject
from bench.data.simulate.presets import DEMO, FULL, NSDGENERAL, TINY
from bench.data.simulate.scenes.sampling import captions, draw, sample_scene, stimulus_seed
from bench.simulate import simulate_shards
from eval.statistics import noise_ceiling

SESSIONS = 20
SMALL = replace(
    DEMO, name="small", sessions=(SESSIONS,) * 8, nsdgeneral=tuple(round(count / 64) for count in NSDGENERAL)
)


def dataset(preset, *subjects: int, **options) -> LowRankNsd:
    drawn = {subject: low_rank_subject(preset, subject) for subject in subjects}
    return LowRankNsd(LowRankOptions(preset, **options), drawn)


@pytest.fixture(scope="module")
def small_latents() -> np.ndarray:
    return latents(SMALL.seed)


@pytest.mark.parametrize("subject", range(1, 9))
def test_the_harness_finds_the_planted_noise_ceiling_of_every_subject(subject):
    made = dataset(SMALL, subject)
    table = made.voxels(subject)
    read = [made.read_session(subject, session, table) for session in range(1, SESSIONS + 1)]
    stimuli = np.concatenate([each.stimulus for each in read])
    session = np.repeat(np.arange(SESSIONS), TRIALS)
    estimate = noise_ceiling.ncsnr(np.concatenate([each.betas for each in read]).astype(float), session, stimuli)
    images = int((np.unique(stimuli, return_counts=True)[1] == 3).sum())
    assert images == 249 + 2287  # of NSD after 20 sessions
    # The noise variance of m images with three showings has a relative error of 1 / sqrt(m).
    error = np.sqrt(1 / images) * (1 + table.ncsnr**2)
    deviation = (estimate**2 - table.ncsnr**2) / error
    assert abs(np.median(deviation)) < 0.5
    assert 0.6 < np.std(deviation) < 1.6
    assert np.median(table.ncsnr) == pytest.approx(MEDIAN_NCSNR[subject - 1], rel=0.01)
    assert np.median(estimate) == pytest.approx(MEDIAN_NCSNR[subject - 1], rel=0.1)


def test_a_signal_by_hand(small_latents):
    made = dataset(SMALL, 3)
    drawn, shown = made._subjects[3], made.trials(3, 2)
    betas = made.read_session(3, 2, drawn.table).betas
    signal = np.zeros((TRIALS, len(drawn.table.ncsnr)), np.float32)
    for trial, stimulus in enumerate(shown.stimulus):
        for number in range(RANK):
            signal[trial] += small_latents[stimulus, number] * drawn.loadings[number]
    expected = session_betas(drawn.voxels, 2, signal)
    assert betas.dtype == np.dtype("<i2")
    np.testing.assert_allclose(betas / 300, expected, atol=0.5 / 300 + 1e-4)


def test_signals_have_variance_one_and_a_falling_spectrum(small_latents):
    loadings = low_rank_subject(SMALL, 5).loadings
    np.testing.assert_allclose(np.linalg.norm(loadings, axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose((small_latents[:8000] @ loadings).var(axis=0), 1, rtol=0.1)
    power = (loadings**2).mean(axis=1)
    assert power[:4].mean() > 5 * power[-4:].mean()


def test_subjects_share_stimuli_and_differ_in_voxels(small_latents):
    np.testing.assert_array_equal(small_latents, latents(SMALL.seed))
    assert not np.array_equal(small_latents, latents(1))
    first, second = low_rank_subject(SMALL, 1), low_rank_subject(SMALL, 2)
    assert not np.array_equal(first.loadings[:, :200], second.loadings[:, :200])


def test_the_design_of_the_full_preset_is_that_of_nsd():
    assert FULL.nsdgeneral == (15_724, 14_278, 15_226, 13_153, 13_039, 17_907, 12_682, 14_386)
    made = LowRankNsd(LowRankOptions(FULL), {})
    pairs = made.sessions()
    assert len(pairs) == 284
    seen: dict[int, set[int]] = {subject: set() for subject in range(1, 9)}
    without_last: dict[int, set[int]] = {subject: set() for subject in range(1, 9)}
    trials = 0
    for subject, session in pairs:
        shown = made.trials(subject, session)
        trials += len(shown.trial)
        seen[subject] |= set(shown.stimulus.tolist())
        if session <= FULL.sessions[subject - 1] - 3:
            without_last[subject] |= set(shown.stimulus.tolist())
    assert trials == 213_000
    assert len(set.union(*seen.values())) == 70_566
    assert len(set.union(*without_last.values())) == 68_608
    assert len(set.intersection(*seen.values())) == 907


@pytest.mark.parametrize(("least", "images"), [(1, 907), (2, 766), (3, 515)])
def test_shared_images_that_all_eight_subjects_saw_so_often(least, images):
    made = LowRankNsd(LowRankOptions(FULL), {})
    shared = made._design.sharedix[0] - 1
    often = np.full(SHARED, 3)
    for subject, sessions in zip(FULL.subjects, FULL.sessions, strict=True):
        stimuli = np.concatenate([made.trials(subject, session).stimulus for session in range(1, sessions + 1)])
        often = np.minimum(often, [np.count_nonzero(stimuli == image) for image in shared])
    assert int((often >= least).sum()) == images


@pytest.fixture(scope="module")
def shards(ray_session, tmp_path_factory) -> Folder:
    return simulate_shards(TINY, Folder.at(tmp_path_factory.mktemp("full")))


def test_shards_hold_what_is_drawn(shards):
    manifest, made = read_manifest(shards), dataset(TINY, 1, 2)
    assert shards.path.split("/")[-2] == "nsd-sim-tiny"
    assert manifest.voxels == {"1": 124, "2": 112}
    assert (
        manifest.unit == "percent signal change"
        and made.unit.doubt(made.read_session(1, 1, made.voxels(1)).betas, made.scale) == ""
    )
    assert manifest.source["label_names"]["prf-visualrois"]["hV4"] == 7
    for subject, session in ((1, 1), (1, 2), (2, 1)):
        table = shards.read_table(session_path(subject, session))
        read = made.read_session(subject, session, made.voxels(subject))
        for name in ("trial", "stimulus", "repeat"):
            np.testing.assert_array_equal(table[name].to_numpy(), getattr(read, name))
        assert b"".join(table["betas"].to_pylist()) == read.betas.tobytes()


def test_a_rerun_keeps_what_is_there_and_makes_what_is_missing(shards, tmp_path):
    data = Folder.at(tmp_path)
    again = simulate_shards(TINY, data)
    before = {entry.path: entry.sha256 for entry in read_manifest(shards).files}
    assert {entry.path: entry.sha256 for entry in read_manifest(again).files} == before
    content = again.read_bytes(session_path(1, 1))
    again.filesystem.delete_file(f"{again.path}/{session_path(1, 2)}")
    again.filesystem.delete_file(f"{again.path}/manifest.json")
    assert simulate_shards(TINY, data) == again
    assert again.read_bytes(session_path(1, 1)) == content
    assert {entry.path: entry.sha256 for entry in read_manifest(again).files} == before


def test_stimuli_without_pictures_are_known_but_cannot_be_shown(shards):
    data = open_data(shards)
    shown = [stimulus for stimulus in data.shared if stimulus >= 0]
    made = dataset(TINY, 1)
    assert set(shown) == set(np.concatenate([made.trials(s, n).stimulus for s, n in made.sessions()])) & set(
        (made._design.sharedix[0] - 1).tolist()
    )
    # The audit must know that no model can have seen what is drawn.
    assert set(scored_pictures(data, shown).origins) == {f"simulated:{number}" for number in shown}
    with pytest.raises(MissingDataError, match=rf"holds no picture of stimuli \[{shown[0]}\]"):
        pictures(data, shown[:1])


def test_pictures_are_drawn_when_asked_for():
    made = dataset(replace(TINY, image_size=32), pictures=True)
    (stimulus,) = made.stimuli([4711])
    scene = sample_scene(stimulus_seed(4711, TINY.seed))
    np.testing.assert_array_equal(stimulus.image, draw(scene, 32))
    assert stimulus.captions == tuple(captions(scene))
    assert png_of(stimulus.image.transpose(2, 0, 1)).startswith(b"\x89PNG")
    assert made.stimuli_source() != dataset(TINY).stimuli_source()


def test_the_command_line_lays_out_shards_for_the_full_preset_only(ray_session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage, "PRESETS", {"full": replace(TINY, name="full"), "tiny": TINY})
    assert stage.main(["--preset", "full", "--out", str(tmp_path)]) == 0
    (made,) = (tmp_path / "nsd-sim-full").glob("betas*")
    assert str(made) in capsys.readouterr().err.replace("\n", "")
    raw = tmp_path / "raw"
    assert stage.main(["--preset", "full", "--raw", "--out", str(raw)]) == 0
    assert (raw / "nsddata_betas").exists()


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown preset 'ful'\. Did you mean 'full'"):
        simulate_shards("ful", Folder.at(tmp_path))
    with pytest.raises(OptionError, match="seed -1 is negative"):
        simulate_shards("full", Folder.at(tmp_path), seed=-1)


def test_sessions_are_drawn_alike_in_any_process(ray_session):
    made = dataset(TINY, 1)
    drawn: Voxels = made._subjects[1].voxels
    elsewhere = ray.get(ray.remote(session_betas).remote(drawn, 1, np.zeros((5, 124), np.float32)))
    np.testing.assert_array_equal(elsewhere, session_betas(drawn, 1, np.zeros((5, 124), np.float32)))
