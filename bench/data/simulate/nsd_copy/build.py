"""The pieces of a simulated NSD that can be written alone: tables, a subject's anatomy, a session's betas.

Every piece depends on preset and seed only, so pieces can be made in any order and process; every file appears whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.data.datasets.nsd import layout
from bench.data.simulate.brain.anatomy import ROI_LABELS
from bench.data.simulate.brain.features import ImageFeatures, image_features
from bench.data.simulate.brain.responses import SubjectTruth, session_betas, simulate_subject
from bench.data.simulate.design import Design, simulate_design
from bench.data.simulate.nsd_copy import tables
from bench.data.simulate.nsd_copy import volumes as nsd_volumes
from bench.data.simulate.presets import Preset
from bench.data.simulate.scenes.sampling import captions, draw_batch, sample_scene, stimulus_seed

SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
HEMISPHERES = {"": "both", "lh": "lh", "rh": "rh"}


@dataclass(frozen=True)
class Pictures:
    """Some stimuli.

    Attributes:
        numbers: `(n,)` 0-based nsdIds, ascending.
        images: `(n, H, W, 3)` uint8 RGB.
        captions: For each its sentences.
    """

    numbers: np.ndarray
    images: np.ndarray
    captions: list[list[str]]


def shown(preset: Preset, design: Design, subject: int, session: int) -> np.ndarray:
    """Return the 0-based stimulus of each trial that is made of a session, `(T,)`."""
    return design.stimuli_of(subject, session)[: preset.trials_per_session]


def first_shown(preset: Preset, design: Design) -> dict[tuple[int, int], np.ndarray]:
    """Return for each (subject, session) the stimuli that no earlier pair shows: together, each stimulus once."""
    seen = np.zeros(design.subjectim.max() + 1, bool)
    owned = {}
    for subject, sessions in zip(preset.subjects, preset.sessions, strict=True):
        for session in range(1, sessions + 1):
            stimuli = np.unique(shown(preset, design, subject, session))
            owned[subject, session] = stimuli[~seen[stimuli]]
            seen[stimuli] = True
    return owned


def write_tables(root: Path, preset: Preset) -> None:
    """Write the design, the stimulus table and every subject's responses; files that are there are kept."""
    design = simulate_design(preset.seed)
    if not (root / layout.DESIGN).exists():
        tables.write_design(root, design)
    if not (root / layout.STIMULUS_INFO).exists():
        tables.write_stimulus_info(root, design)
    for subject, sessions in zip(preset.subjects, preset.sessions, strict=True):
        if not (root / layout.responses(subject)).exists():
            tables.write_responses(root, design, subject, sessions, preset.seed)


def write_subject(root: Path, preset: Preset, subject: int, reference: ImageFeatures) -> SubjectTruth:
    """Write a subject's masks, atlases and ncsnr, and return what its betas are made from.

    Args:
        root: The simulated NSD.
        preset: Its size.
        subject: From 1.
        reference: Features of the reference scenes, the same for all subjects.
    """
    truth = simulate_subject(preset, subject, reference)
    anatomy = truth.anatomy
    for atlas, names in ROI_LABELS.items():
        volumes = {prefix: anatomy.roi_volume(atlas, hemisphere) for prefix, hemisphere in HEMISPHERES.items()}
        labels = {name: number for number, name in enumerate(names, start=1)}
        nsd_volumes.write_atlas(root, subject, SPACE, atlas, volumes, labels)
    nsd_volumes.write_brain_mask(root, subject, SPACE, anatomy.brain)
    ncsnr = truth.ncsnr_volume()
    nsd_volumes.write_nifti(root / layout.betas_folder(subject, SPACE, BETAS) / "ncsnr.nii.gz", ncsnr, SPACE)
    return truth


def session_paths(root: Path, subject: int, session: int) -> list[Path]:
    """Return the two files of a session's betas."""
    folder = layout.betas_folder(subject, SPACE, BETAS)
    return [root / layout.session_betas(folder, session, files) for files in ("hdf5", "nifti")]


def write_session(root: Path, truth: SubjectTruth, session: int, owned: np.ndarray) -> Pictures:
    """Write a session's betas in both formats, unless they are there, and return some of its stimuli.

    Args:
        root: The simulated NSD.
        truth: The subject.
        session: From 1.
        owned: Stimuli to return, among those the session shows.
    """
    preset = truth.preset
    stimuli = shown(preset, simulate_design(preset.seed), truth.subject, session)
    hdf5, nifti = session_paths(root, truth.subject, session)
    missing = not (hdf5.exists() and nifti.exists())
    numbers = np.unique(stimuli) if missing else owned
    scenes = [sample_scene(stimulus_seed(int(number), preset.seed)) for number in numbers]
    images = draw_batch(scenes, preset.image_size)
    if missing:
        signal = truth.signal(image_features(images, scenes))[np.searchsorted(numbers, stimuli)]
        stored = nsd_volumes.stored(session_betas(truth, session, signal))
        volume = nsd_volumes.embed(stored, truth.anatomy.positions, truth.anatomy.shape)
        nsd_volumes.write_betas(hdf5, volume)
        nsd_volumes.write_nifti(nifti, volume, SPACE)
    chosen = np.searchsorted(numbers, owned)
    return Pictures(owned, images[chosen], [captions(scenes[place]) for place in chosen])
