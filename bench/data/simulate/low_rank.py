"""A simulated NSD at its true size, drawn straight into shards: low-rank signal, the demo's noise.

Computing 213,000 responses from pixels would take hours. Here a stimulus is ``RANK`` numbers, the same for all
subjects, and a voxel's signal is a linear function of them, of variance 1 over stimuli, with a spectrum that falls as
that of visual cortex (power law, Stringer et al. 2019). Everything else is the demo's
(:mod:`bench.data.simulate.brain.responses`): anatomy and labels, ncsnr planted with the real medians, drift, shared
noise, gains and offsets of sessions. So signal and noise are calibrated in the same way. What it lacks are pictures
that explain the betas: an encoder can learn the latents, not what a picture looks like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.identity import plain
from bench.data.datasets.base import BetaUnit, Dataset, SessionTrials, Stimulus, Trials, VoxelTable
from bench.data.datasets.nsd.volumes import DTYPE, SCALE
from bench.data.simulate.brain.anatomy import ROI_LABELS, Anatomy, build_anatomy
from bench.data.simulate.brain.features import Floats
from bench.data.simulate.brain.responses import Voxels, plant_voxels, session_betas, to_int16
from bench.data.simulate.design import IMAGES, TRIALS, simulate_design
from bench.data.simulate.elementary import power
from bench.data.simulate.exact import NORMAL_LIMIT, norm, product, short_normals
from bench.data.simulate.nsd_copy.build import BETAS, SPACE
from bench.data.simulate.presets import Preset
from bench.data.simulate.scenes.sampling import captions, draw_batch, sample_scene, stimulus_seed

RANK = 64
SPECTRUM = 1.0
"""Exponent of the power law of the signal's variance over latent dimensions."""
PICTURES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class LowRankSubject:
    """What a subject's shards are drawn from.

    Attributes:
        voxels: Noise and scale of the V voxels of nsdgeneral.
        loadings: `(RANK, V)` float32 weights of the stimuli's latents, of norm 1 for each voxel.
        table: The voxels' places, labels and planted ncsnr.
    """

    voxels: Voxels
    loadings: Floats
    table: VoxelTable


@dataclass(frozen=True)
class LowRankOptions:
    """What is simulated.

    Attributes:
        preset: Sizes, seed and behaviour of the noise.
        pictures: Whether to draw the stimuli; without them stimuli have neither picture nor captions.
        root: Nothing is read from files.
    """

    preset: Preset
    pictures: bool = False
    root: str = ""


def latents(seed: int) -> Floats:
    """Return what each of NSD's 73,000 stimuli is, `(73000, RANK)` float32 of mean 0 and variance 1."""
    return short_normals(np.random.default_rng([seed, 0x1A7E]), (IMAGES, RANK))


def low_rank_subject(preset: Preset, subject: int) -> LowRankSubject:
    """Draw a subject; the same for equal arguments.

    Args:
        preset: Size and behaviour of the dataset.
        subject: From 1.
    """
    anatomy = build_anatomy(preset, subject)
    columns = np.flatnonzero(anatomy.labels["nsdgeneral"] > 0)
    voxels = plant_voxels(preset, subject, anatomy).chosen(columns)
    rng = np.random.default_rng([preset.seed, 0x10AD, subject])
    loadings = short_normals(rng, (RANK, columns.size)) * power(np.arange(1, RANK + 1), -SPECTRUM / 2)[:, None]
    loadings /= norm(loadings)
    return LowRankSubject(voxels, loadings.astype(np.float32), _table(anatomy, columns, voxels.ncsnr))


def _table(anatomy: Anatomy, columns: np.ndarray, ncsnr: np.ndarray) -> VoxelTable:
    """Return the voxel table of some of the brain's voxels."""
    labels = {atlas: values[columns].astype(np.int16) for atlas, values in anatomy.labels.items()}
    return VoxelTable(anatomy.positions[columns].astype(np.int32), ncsnr.astype(np.float32), labels)


class LowRankNsd(Dataset):
    """Gives `bench.prepare` sessions that are drawn when they are asked for; each is a pure function of its number.

    Args:
        options: What to simulate.
        subjects: Every subject of the preset, from `low_rank_subject`.
    """

    version = 2
    Options = LowRankOptions
    terms = ""
    caption_source = "simulator"
    dtype = DTYPE.str
    scale = SCALE
    unit = BetaUnit("percent signal change", 0.3, 30.0, "drawn with the spread of Allen et al. 2022")

    def __init__(self, options: LowRankOptions, subjects: Mapping[int, LowRankSubject]) -> None:
        super().__init__(options)
        self.preset = options.preset
        self.name = f"nsd-sim-{options.preset.name}"
        self._subjects = subjects
        self._latents = latents(options.preset.seed)
        self._design = simulate_design(options.preset.seed)

    def source(self) -> Mapping[str, Any]:
        """Return what decides the shards' content."""
        names = {atlas: {name: i for i, name in enumerate(labels, 1)} for atlas, labels in ROI_LABELS.items()}
        return {"reader": "low-rank", "version": self.version, "simulation": plain(self.preset), "label_names": names}

    def stimuli_source(self) -> Mapping[str, Any]:
        """Return what decides the stimuli."""
        size = self.preset.image_size if self.options.pictures else 0
        return {"reader": "low-rank", "version": self.version, "seed": self.preset.seed, "image_size": size}

    @property
    def label(self) -> str:
        """The shards' folder name before the digest."""
        return f"{BETAS}.{SPACE}.nsdgeneral"

    def sessions(self) -> Sequence[tuple[int, int]]:
        """Return the (subject, session) pairs, sorted."""
        counts = zip(self.preset.subjects, self.preset.sessions, strict=True)
        return [(subject, session) for subject, count in counts for session in range(1, count + 1)]

    def trials(self, subject: int, session: int) -> Trials:
        """Return what a session showed."""
        made = slice(self.preset.trials_per_session)
        first = (session - 1) * TRIALS
        stimuli, repeats = self._design.stimuli_of(subject, session), self._design.repeats(session)
        return Trials(np.arange(first, first + TRIALS)[made], stimuli[made], repeats[made])

    def reads(self, subject: int, session: int, voxels: int) -> tuple[str, int]:
        """Return what a session is made from: no file, no bytes."""
        del voxels
        return f"drawn: subject {subject}, session {session}", 0

    def voxels(self, subject: int) -> VoxelTable:
        """Return the voxels of nsdgeneral."""
        return self._subjects[subject].table

    def read_session(self, subject: int, session: int, voxels: VoxelTable) -> SessionTrials:
        """Draw the int16 betas of a session."""
        del voxels
        drawn, shown = self._subjects[subject], self.trials(subject, session)
        signal = product(self._latents[shown.stimulus], drawn.loadings, NORMAL_LIMIT)
        betas = to_int16(session_betas(drawn.voxels, session, signal))
        return shown.with_betas(betas, 0)

    def origins(self, numbers: Sequence[int]) -> list[str | None]:
        """Return that all pictures are drawn: they stand in no other set."""
        return [f"simulated:{number}" for number in numbers]

    def stimuli(self, numbers: Sequence[int]) -> Iterator[Stimulus]:
        """Yield the stimuli, with scenes and captions where pictures were asked for."""
        shared = set((self._design.sharedix[0] - 1).tolist())
        if not self.options.pictures:
            yield from (Stimulus(number, None, (), None, number in shared) for number in numbers)
            return
        for start in range(0, len(numbers), PICTURES_AT_ONCE):
            some = numbers[start : start + PICTURES_AT_ONCE]
            scenes = [sample_scene(stimulus_seed(int(number), self.preset.seed)) for number in some]
            for number, scene, image in zip(some, scenes, draw_batch(scenes, self.preset.image_size), strict=True):
                yield Stimulus(number, image, tuple(captions(scene)), None, number in shared)
