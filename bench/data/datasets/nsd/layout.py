"""Where NSD keeps its files: the keys of its bucket, which are also the paths under a local copy's root.

Subjects, sessions and runs count from 1 in every key. The simulator writes to the same keys.
"""

from __future__ import annotations

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIMULUS_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
SIMULATED = "simulated.json"
"""Only a simulated NSD has this file: its presence, and nothing else, tells it from the real one."""

SPACES = ("func1pt8mm", "func1mm", "fsaverage", "nativesurface")
BETAS = ("betas_assumehrf", "betas_fithrf", "betas_fithrf_GLMdenoise_RR")
SUFFIXES = {"hdf5": "hdf5", "nifti": "nii.gz"}


def subject_name(subject: int) -> str:
    """Return the name of a subject's folders: 1 is `subj01`."""
    return f"subj{subject:02d}"


def captions(split: str) -> str:
    """Return the key of COCO's captions of a split (`train2017` or `val2017`); not in NSD's bucket."""
    return f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"


def betas_folder(subject: int, space: str, betas: str) -> str:
    """Return the folder of a subject's betas."""
    return f"nsddata_betas/ppdata/{subject_name(subject)}/{space}/{betas}"


def session_betas(folder: str, session: int, files: str) -> str:
    """Return the key of a session's betas in a betas folder; `files` is `hdf5` or `nifti`."""
    return f"{folder}/{session_stem(session)}.{SUFFIXES[files]}"


def session_stem(session: int) -> str:
    """Return the file name of a session's betas without what says its kind."""
    return f"betas_session{session:02d}"


def functional_folder(subject: int, space: str) -> str:
    """Return the folder of a subject's anatomical and ROI volumes in a functional space."""
    return f"nsddata/ppdata/{subject_name(subject)}/{space}"


def roi_volume(subject: int, space: str, atlas: str, hemisphere: str = "") -> str:
    """Return the key of an atlas; `hemisphere` is "", `lh` or `rh`. `brainmask` lies beside the ROI folder."""
    folder = functional_folder(subject, space)
    if atlas == "brainmask":
        return f"{folder}/brainmask.nii.gz"
    return f"{folder}/roi/{hemisphere + '.' if hemisphere else ''}{atlas}.nii.gz"


def label_folder(subject: int | None) -> str:
    """Return the folder of label maps and names on a subject's surface, or on fsaverage's where `subject` is None."""
    return f"nsddata/freesurfer/{'fsaverage' if subject is None else subject_name(subject)}/label"


def label_names(subject: int | None, atlas: str) -> str:
    """Return the key of an atlas's label names of a subject, or of fsaverage where `subject` is None."""
    return f"{label_folder(subject)}/lh.{atlas}.mgz.ctab"


def template_names(atlas: str) -> str:
    """Return the key of the label names of an atlas that was drawn on volumes (`MTL`, `thalamus`)."""
    return f"nsddata/templates/{atlas}.ctab"


def responses(subject: int) -> str:
    """Return the key of a subject's behavioural responses."""
    return f"nsddata/ppdata/{subject_name(subject)}/behav/responses.tsv"
