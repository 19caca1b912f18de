"""Where BOLD5000 keeps its files, relative to a folder that holds what its release 2.0 and its stimuli are unpacked to.

Subjects are CSI1 to CSI4, sessions and runs count from 1. Sources: the release's own README (Chang et al. 2019), its
makers' code for the names of betas, OpenNeuro ds001499 for the masks, MinD-Vis (Chen et al. 2023) for the ROI arrays.
"""

from __future__ import annotations

import re

SUBJECTS = (1, 2, 3, 4)
SESSIONS = {1: 15, 2: 15, 3: 15, 4: 9}
IMAGES_PER_RUN = 37
LONG_SESSIONS = {
    1: (1, 2, 3, 5, 7, 10, 15),
    2: (1, 3, 4, 5, 11, 12, 14),
    3: (1, 3, 5, 6, 7, 11, 15),
    4: (1, 4, 9),
}
"""Sessions of ten runs; all others have nine."""

BETAS = ("TYPEA-ASSUMEHRF", "TYBEB-FITHRF", "TYPEC-FITHRF-GLMDENOISE", "TYPED-FITHRF-GLMDENOISE-RR")
"""Beta versions as the files spell them: the second one's misprint is the release's own."""

ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
HEMISPHERES = ("LH", "RH")

STIMULI = "BOLD5000_Stimuli"
PICTURES = f"{STIMULI}/Scene_Stimuli/Presented_Stimuli"
REPEATED = f"{STIMULI}/Scene_Stimuli/repeated_stimuli_113_list.txt"
LISTS = f"{STIMULI}/Stimuli_Presentation_Lists"
IMAGENET_LABELS = f"{STIMULI}/Image_Labels/imagenet_final_labels.txt"
SCENE_LABELS = f"{STIMULI}/Image_Labels/scene_final_labels.txt"
ARRAYS = "BOLD5000_GLMsingle_ROI_betas/py"

_MASK = re.compile(r"_mask-(LH|RH)R?(EarlyVis|LOC?|OPA|PPA|RSC)\.nii\.gz$")


def subject_name(subject: int) -> str:
    """Return a subject's name: 1 is `CSI1`."""
    return f"CSI{subject}"


def runs(subject: int, session: int) -> int:
    """Return the number of a session's runs."""
    return 10 if session in LONG_SESSIONS[subject] else 9


def names_lists(subject: int) -> tuple[str, str]:
    """Return where the names of a subject's images may lie, one a trial: beside the betas, or with the stimuli."""
    name = subject_name(subject)
    return f"{name}_imgnames.txt", f"{LISTS}/{name}/{name}_imgnames.txt"


def run_list(subject: int, session: int, run: int) -> str:
    """Return the presentation list of a run; `rep_` stands before images that were shown before."""
    name = subject_name(subject)
    return f"{LISTS}/{name}/{name}_sess{session:02d}/CSI_sess{session:02d}_run{run:02d}.txt"


def session_betas(subject: int, betas: str, session: int) -> str:
    """Return the volume of a session's betas."""
    return f"{subject_name(subject)}_GLMbetas-{betas}_ses-{session:02d}.nii.gz"


def roi_array(subject: int, betas: str, hemisphere: str, roi: str) -> str:
    """Return the array of an ROI's betas in all sessions."""
    return f"{ARRAYS}/{subject_name(subject)}_GLMbetas-{betas}_allses_{hemisphere}{roi}.npy"


def mask_folders(subject: int) -> tuple[str, str]:
    """Return the folders a subject's ROI masks may lie in: as OpenNeuro has them, or copied beside the betas."""
    return f"derivatives/spm/sub-{subject_name(subject)}", f"sub-{subject_name(subject)}"


def brain_mask(subject: int) -> str:
    """Return the release's mask of a subject's brain."""
    return f"{subject_name(subject)}_brainmask.nii.gz"


def mask_of(name: str) -> tuple[str, str] | None:
    """Return the ROI and the hemisphere of a mask by its file name, None for other files.

    OpenNeuro's own misprints are understood: `LHLO` and `RHLO` (CSI2, CSI3) are LOC's, `RHRRSC` (CSI2) is RSC's.
    """
    match = _MASK.search(name)
    if match is None:
        return None
    return "LOC" if match[2] == "LO" else match[2], match[1]
