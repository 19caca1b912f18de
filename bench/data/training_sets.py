"""Data sets that models are trained on, by name, and which of them hold test images of the data sets scored here.

A generator names its training sets in its class, a stage those of outside weights it starts from; the leakage audit
looks up here what each of them means for a test set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.errors import UnknownNameError

Holds = Literal["yes", "maybe", "no", "unknown"]
WEB = "photographs gathered from the web, COCO's source Flickr among it"
SIMULATED = "nsd-sim"


@dataclass(frozen=True)
class TrainingSet:
    """A data set that models are trained on.

    Attributes:
        title: What it is.
        kind: `images` alone, or brain `responses` to images.
        holds: For each scored data set what is known of its test images in this one: yes or maybe, and why. A set that
            is not named here is not known to hold any.
    """

    title: str
    kind: Literal["images", "responses"]
    holds: Mapping[str, tuple[Holds, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Overlap:
    """What a training set means for a test set: whether it holds its images, and why."""

    holds: Holds
    why: str


_WEB: Mapping[str, tuple[Holds, str]] = {"nsd": ("maybe", WEB), "bold5000": ("maybe", WEB)}
_IMAGENET: Mapping[str, tuple[Holds, str]] = {
    "bold5000": ("maybe", "1,916 of BOLD5000's images are ImageNet's"),
    "god": ("maybe", "GOD's images are ImageNet's"),
}
_COCO_BOLD5000 = "2,000 of BOLD5000's images are COCO's"

TRAINING_SETS: Mapping[str, TrainingSet] = {
    # nsd_stim_info_merged.csv: all 1,000 shared images are of COCO's train2017 and flagged BOLD5000.
    "coco-train2017": TrainingSet(
        "COCO's training images of 2017",
        "images",
        {"nsd": ("yes", "all 1,000 shared images are COCO train2017"), "bold5000": ("maybe", _COCO_BOLD5000)},
    ),
    "coco-val2017": TrainingSet("COCO's validation images of 2017", "images", {"bold5000": ("maybe", _COCO_BOLD5000)}),
    "imagenet-1k": TrainingSet("ILSVRC's 1,000 classes", "images", _IMAGENET),
    "imagenet-64": TrainingSet("ImageNet at 64 pixels", "images", _IMAGENET),
    "imagenet-21k": TrainingSet("all of ImageNet", "images", _IMAGENET),
    "laion-400m": TrainingSet("400 million captioned images of the web", "images", _WEB),
    "laion-2b-en": TrainingSet("2 billion images of the web with English captions", "images", _WEB),
    "laion-5b": TrainingSet("5 billion captioned images of the web", "images", _WEB),
    "laion-aesthetics": TrainingSet("the parts of LAION that a network rates as beautiful", "images", _WEB),
    "coyo-700m": TrainingSet("700 million captioned images of the web", "images", _WEB),
    "open-images": TrainingSet("9 million photographs of Flickr", "images", _WEB),
    "openai-wit": TrainingSet("the 400 million captioned web images of OpenAI's CLIP, not published", "images", _WEB),
    "unpublished-images": TrainingSet(
        "images that the model's makers do not name", "images", {"nsd": ("maybe", "not published")}
    ),
    "simulated-scenes": TrainingSet("scenes of this package's simulator, of designs that no data set uses", "images"),
    "nsd": TrainingSet(
        "responses of the Natural Scenes Dataset", "responses", {"nsd": ("yes", "NSD's own test trials are among it")}
    ),
    "bold5000": TrainingSet(
        "responses of BOLD5000",
        "responses",
        {
            "nsd": ("yes", "all 1,000 shared images are BOLD5000's"),
            "bold5000": ("yes", "BOLD5000's own test trials are among it"),
        },
    ),
    "god": TrainingSet("responses of Generic Object Decoding", "responses", {"god": ("yes", "GOD's own test trials")}),
    "things-fmri": TrainingSet(
        "responses of THINGS-fMRI", "responses", {"things-fmri": ("yes", "THINGS-fMRI's own test trials")}
    ),
    "hcp": TrainingSet("the Human Connectome Project's fMRI, without pictures of any set here", "responses"),
}
SCORED = ("nsd", "bold5000", "god", "things-fmri")
"""Data sets whose test images are looked up; of others nothing is known, but of the simulated NSD everything is."""


def find(name: str, where: str = "") -> TrainingSet:
    """Return a training set by name.

    Raises:
        UnknownNameError: If there is none; the nearest name is offered.
    """
    if name not in TRAINING_SETS:
        raise UnknownNameError("training set", name, TRAINING_SETS, where)
    return TRAINING_SETS[name]


def check(names: Iterable[str], where: str) -> None:
    """Check names of training sets.

    Raises:
        UnknownNameError: If there is none of a name.
    """
    for name in names:
        find(name, where)


def overlap(name: str, dataset: str) -> Overlap:
    """Return whether a training set holds test images of a data set, as far as is known.

    Args:
        name: A training set.
        dataset: Name of the scored data, as its shards have it.

    Raises:
        UnknownNameError: If there is no such training set.
    """
    training = find(name)
    if dataset == SIMULATED or dataset.startswith(f"{SIMULATED}-"):
        # Its pictures are drawn, so no outside set can hold them, and the shipped models saw other designs.
        return Overlap("no", "the simulator's test scenes are in no other set")
    if dataset in training.holds:
        return Overlap(*training.holds[dataset])
    if dataset in SCORED:
        return Overlap("no", "not known to hold any")
    return Overlap("unknown", f"nothing is known of data named {dataset!r}")
