"""Simulated betas with a known truth: signal, noise ceiling, drift and scale of every voxel.

A subject's truth fixes, for every voxel, its tuning (:mod:`bench.data.simulate.brain.tuning`) and its ncsnr: the ratio
of signal to noise standard deviation of betas z-scored within sessions, where the noise variance is the mean over
images of the variance over the three showings (Allen et al. 2022). With noise standard deviation
``v = 1 / sqrt(1 + ncsnr^2)`` and signal standard deviation ``ncsnr * v`` the z-scored betas have variance 1. Log ncsnr
is normal around area medians: those of V1, V2 and hV4 reproduce the real mean noise ceilings (37.0, 31.1, 26.4 % of the
variance of three-trial means), and the median over nsdgeneral equals the real subject's.

Noise is white over trials, plus a slow drift within the session, plus courses that neighbouring voxels share; each
session has its own gain and offset. A session's betas depend on the truth, the session number and its signal only, so
sessions can be made in any order and process.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.data.simulate.brain.anatomy import Anatomy, build_anatomy
from bench.data.simulate.brain.features import Floats, ImageFeatures
from bench.data.simulate.brain.tuning import Tuning, build_tuning, reference_features
from bench.data.simulate.elementary import cos, exp, log, sin
from bench.data.simulate.exact import NORMAL_LIMIT, mean, norm, normals, product, short_normals
from bench.data.simulate.presets import Preset

MEDIAN_NCSNR = (0.361, 0.361, 0.324, 0.296, 0.415, 0.343, 0.281, 0.226)
"""Median ncsnr over nsdgeneral, func1pt8mm, betas_fithrf_GLMdenoise_RR, subjects 1 to 8."""
AREA_NOISE_CEILING: dict[tuple[str, ...], float] = {
    ("V1v", "V1d"): 37.0,
    ("V2v", "V2d"): 31.1,
    ("V3v", "V3d"): 28.7,
    ("hV4",): 26.4,
}
"""Noise ceiling of three-trial means in percent, mean over the eight subjects; V3 lies between its neighbours."""
OUTSIDE_NSDGENERAL = 0.5
"""Median ncsnr of stream voxels outside nsdgeneral, relative to that of nsdgeneral."""
SATURATION = 109.2
"""Largest beta in percent signal change that int16 holds at the factor of 300."""
BETA_SPREAD = 3.0
"""Median standard deviation of a voxel's betas within a session, in percent signal change."""
DRIFT_WAVES = 3
COMMON_COURSES = 6
TRIAL_BLOCK = 64
"""Trials whose slow and shared noise is made at once, which bounds memory at full size."""


@dataclass(frozen=True, eq=False)
class Voxels:
    """What turns a signal into betas: the noise and the scale of every voxel, whatever the signal is made of.

    Attributes:
        preset: The dataset they belong to.
        subject: Subject number, from 1.
        responsive: ``(R,)`` indices of the voxels with a signal; the others are pure noise.
        ncsnr: ``(V,)`` planted ncsnr, 0 for voxels without a signal.
        mean: ``(V,)`` mean beta in percent signal change.
        spread: ``(V,)`` standard deviation of the betas within a session of gain 1, in percent signal change.
        common: ``(6, V)`` loadings on the shared noise courses, of norm 1 for each voxel.
    """

    preset: Preset
    subject: int
    responsive: NDArray[np.int64]
    ncsnr: NDArray[np.float64]
    mean: Floats
    spread: Floats
    common: Floats

    def chosen(self, columns: NDArray[np.int64]) -> "Voxels":
        """Returns some of the voxels, all of which must have a signal.

        Args:
            columns: ``(C,)`` their indices.
        """
        return Voxels(
            preset=self.preset,
            subject=self.subject,
            responsive=np.arange(columns.size),
            ncsnr=self.ncsnr[columns],
            mean=self.mean[columns],
            spread=self.spread[columns],
            common=np.ascontiguousarray(self.common[:, columns]),
        )


@dataclass(frozen=True, eq=False)
class SubjectTruth(Voxels):
    """Everything that is fixed about a simulated subject, besides its voxels' noise and scale.

    Attributes:
        anatomy: Voxel positions, ROI labels, receptive fields.
        tuning: What the responsive voxels respond to.
    """

    anatomy: Anatomy
    tuning: Tuning

    def signal(self, features: ImageFeatures) -> Floats:
        """Returns the noise-free signal of N pictures at the responsive voxels, ``(N, R)``, with variance about 1."""
        return self.tuning.signal(features)

    def ncsnr_volume(self) -> Floats:
        """Returns the planted ncsnr as a volume ``(X, Y, Z)``, NaN outside the brain."""
        volume = np.full(self.anatomy.shape, np.nan, np.float32)
        volume[tuple(self.anatomy.positions.T)] = self.ncsnr
        return volume


def simulate_subject(preset: Preset, subject: int, reference: ImageFeatures | None = None) -> SubjectTruth:
    """Draws a subject.

    Args:
        preset: Size and behaviour of the dataset.
        subject: 1 to the number of subjects.
        reference: Features of :func:`~bench.data.simulate.brain.tuning.reference_features`, to compute them only once.

    Returns:
        The subject's truth; the same for equal preset and subject.

    Raises:
        ValueError: When the preset has no such subject.
    """
    if subject not in preset.subjects:
        raise ValueError(f"preset {preset.name} has no subject {subject}; allowed are 1 to {len(preset.subjects)}")
    anatomy = build_anatomy(preset, subject)
    voxels = plant_voxels(preset, subject, anatomy)
    given = reference or reference_features(preset)
    return SubjectTruth(
        **vars(voxels), anatomy=anatomy, tuning=build_tuning(preset, subject, anatomy, voxels.responsive, given)
    )


def plant_voxels(preset: Preset, subject: int, anatomy: Anatomy) -> Voxels:
    """Draws noise and scale of a subject's voxels; only those of nsdgeneral and the streams have a signal.

    Args:
        preset: Size and behaviour of the dataset.
        subject: From 1.
        anatomy: Its brain.
    """
    rng = np.random.default_rng([preset.seed, 0x5B5B, subject])
    count = len(anatomy.positions)
    return Voxels(
        preset=preset,
        subject=subject,
        responsive=np.flatnonzero((anatomy.labels["nsdgeneral"] > 0) | (anatomy.labels["streams"] > 0)),
        ncsnr=plant_ncsnr(rng, anatomy, MEDIAN_NCSNR[subject - 1], preset.ncsnr_spread),
        mean=(1.2 + normals(rng, count)).astype(np.float32),
        spread=(BETA_SPREAD * exp(0.3 * normals(rng, count))).astype(np.float32),
        common=_common_loadings(rng, anatomy),
    )


def session_betas(truth: Voxels, session: int, signal: Floats) -> Floats:
    """Makes the betas of one session.

    Args:
        truth: The subject's voxels.
        session: 1-based session number; seeds the noise together with the preset's seed and the subject.
        signal: ``(T, R)`` noise-free signal of the session's trials, of variance 1 over stimuli, for the responsive
            voxels.

    Returns:
        ``(T, V)`` in percent signal change, for all voxels; of a whole brain in the order of ``anatomy.positions``.

    Raises:
        ValueError: When the signal's width is not the number of responsive voxels.
    """
    if signal.ndim != 2 or signal.shape[1] != truth.responsive.size:
        raise ValueError(f"signal has shape {signal.shape}; expected (trials, {truth.responsive.size})")
    rng = np.random.default_rng([truth.preset.seed, 0xBE7A, truth.subject, session])
    noise_sd = (1 / np.sqrt(1 + truth.ncsnr**2)).astype(np.float32)
    betas = _noise(rng, truth, len(signal))
    betas *= noise_sd
    betas[:, truth.responsive] += signal * (truth.ncsnr[truth.responsive] * noise_sd[truth.responsive]).astype("f4")
    count = truth.mean.size
    betas *= truth.spread * exp(0.08 * normals(rng, count)).astype(np.float32)
    betas += truth.mean + (0.4 * normals(rng, count)).astype(np.float32)
    return np.clip(betas, -SATURATION, SATURATION, out=betas)


def plant_ncsnr(rng: np.random.Generator, anatomy: Anatomy, median: float, spread: float) -> NDArray[np.float64]:
    """Draws every voxel's ncsnr.

    Args:
        rng: Source of chance.
        anatomy: The subject's brain.
        median: Wanted median over nsdgeneral.
        spread: Standard deviation of log ncsnr within an area.

    Returns:
        ``(V,)``; 0 outside nsdgeneral and the streams. Medians over V1, V2, V3, hV4 and nsdgeneral are exact.
    """
    general = anatomy.labels["nsdgeneral"] > 0
    log_noise = spread * normals(rng, general.size)
    ncsnr = np.where(anatomy.labels["streams"] > 0, OUTSIDE_NSDGENERAL * median * exp(log_noise), 0.0)
    rest = general.copy()
    for names, ceiling in AREA_NOISE_CEILING.items():
        area = anatomy.area("prf-visualrois", *names)
        ncsnr[area] = median * relative_ncsnr(ceiling) * exp(log_noise[area] - np.median(log_noise[area]))
        rest &= ~area
    relative = exp(log_noise[rest])
    low, high = log(1e-3), log(1e2)
    for _ in range(60):  # the median over nsdgeneral grows with the scale of the remaining voxels
        middle = (low + high) / 2
        ncsnr[rest] = median * exp(middle) * relative
        low, high = (middle, high) if np.median(ncsnr[general]) < median else (low, middle)
    return ncsnr


def relative_ncsnr(ceiling: float) -> float:
    """Returns the factor on the subjects' median ncsnr whose mean noise ceiling over the eight subjects is ``ceiling``.

    Args:
        ceiling: Noise ceiling of three-trial means in percent, between 0 and 100 (exclusive).
    """
    medians = np.array(MEDIAN_NCSNR)
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(noise_ceiling(middle * medians, 3)) < ceiling else (low, middle)
    return low


def noise_ceiling(ncsnr: NDArray[np.float64], showings: float) -> NDArray[np.float64]:
    """Returns ``100 * ncsnr^2 / (ncsnr^2 + 1 / showings)``, the noise ceiling in percent (Allen et al. 2022)."""
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / showings)


def to_int16(betas: Floats) -> NDArray[np.int16]:
    """Returns betas as NSD stores them, ``round(percent signal change * 300)``."""
    return np.rint(betas * 300).astype(np.int16)


def _noise(rng: np.random.Generator, truth: Voxels, trials: int) -> Floats:
    """White, slow and shared noise of total variance 1, ``(trials, V)``."""
    preset, voxels = truth.preset, truth.mean.size
    noise = short_normals(rng, (trials, voxels))
    noise *= np.float32(np.sqrt(1 - preset.drift_share - preset.common_share))
    time = (np.arange(trials) + 0.5) / trials
    waves = np.sqrt(2) * cos(np.pi * np.arange(1, DRIFT_WAVES + 1) * time[:, None])
    weights = normals(rng, (DRIFT_WAVES, voxels))
    weights *= np.sqrt(preset.drift_share) / norm(weights)
    courses = normals(rng, (trials, COMMON_COURSES)) * np.sqrt(preset.common_share)
    over_time = np.concatenate([waves, courses], axis=1).astype(np.float32)
    over_voxels = np.concatenate([weights.astype(np.float32), truth.common])
    for start in range(0, trials, TRIAL_BLOCK):
        rows = slice(start, start + TRIAL_BLOCK)
        noise[rows] += product(over_time[rows], over_voxels, NORMAL_LIMIT)
    return noise


def _common_loadings(rng: np.random.Generator, anatomy: Anatomy) -> Floats:
    """Smooth maps over the brain, of norm 1 over the courses at each voxel."""
    unit = anatomy.positions / np.array(anatomy.shape)
    waves = 4.0 * normals(rng, (3, COMMON_COURSES))
    phase = unit[:, 0, None] * waves[0] + unit[:, 1, None] * waves[1] + unit[:, 2, None] * waves[2]
    maps = sin(phase + 2 * np.pi * rng.random(COMMON_COURSES)).T
    return (maps / norm(maps)).astype(np.float32)
