"""Data sets that models are trained on, by name, and which of them hold the pictures that are scored here.

A generator names its training sets in its class, a stage those of outside weights it starts from. A reader says what
each of its pictures is in its own source (`Dataset.origins`). The leakage audit looks up here what the one means for
the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.core.errors import UnknownNameError

Holds = Literal["yes", "maybe", "no", "unknown"]
Known = tuple[Holds, str]
"""Yes or maybe, and why: words that go on after "113 of 113 test pictures"."""


@dataclass(frozen=True)
class ScoredPictures:
    """The test pictures that are scored.

    Attributes:
        dataset: Name of their data, as the shards have it.
        origins: What each is in its own source, `coco-train2017:396550` (see `Dataset.origins`), None if not known.
    """

    dataset: str
    origins: tuple[str | None, ...]


@dataclass(frozen=True)
class TrainingSet:
    """A data set that models are trained on.

    Attributes:
        title: What it is.
        kind: `images` alone, or brain `responses` to images.
        pictures: For each source that test pictures come from what is known of its pictures in this one. A source that
            is not named here is not known to have any.
        responses: For each scored data set whose own test trials are known to be among these responses, or whose test
            pictures were shown for them. What is known of a whole data set goes before what is known of its pictures.
    """

    title: str
    kind: Literal["images", "responses"]
    pictures: Mapping[str, Known] = field(default_factory=dict)
    responses: Mapping[str, Known] = field(default_factory=dict)


@dataclass(frozen=True)
class Overlap:
    """What a training set means for test pictures: whether it holds them, why, and how many of them it is about."""

    holds: Holds
    why: str
    pictures: int = 0


_FROM_WEB: Known = ("maybe", "were gathered from the web, as these were")
# COCO's pictures are Flickr's; those of ImageNet, THINGS and BOLD5000's scenes were found by search engines.
_WEB = dict.fromkeys(("coco-train2017", "coco-val2017", "coco", "imagenet", "scene", "things"), _FROM_WEB)
_COCO: Known = ("maybe", "are COCO's, of which these are a part")
_IMAGENET: Mapping[str, Known] = {"imagenet": ("maybe", "are ImageNet's, of which these are a part")}
_SHOWN = "are of a source whose pictures were shown for these"

TRAINING_SETS: Mapping[str, TrainingSet] = {
    "coco-train2017": TrainingSet(
        "COCO's training images of 2017",
        "images",
        {"coco-train2017": ("yes", "are COCO's training images of 2017"), "coco": _COCO},
    ),
    "coco-val2017": TrainingSet(
        "COCO's validation images of 2017",
        "images",
        {"coco-val2017": ("yes", "are COCO's validation images of 2017"), "coco": _COCO},
    ),
    "imagenet-1k": TrainingSet("ILSVRC's 1,000 classes", "images", _IMAGENET),
    "imagenet-64": TrainingSet("ImageNet at 64 pixels", "images", _IMAGENET),
    "imagenet-21k": TrainingSet("all of ImageNet", "images", {"imagenet": ("yes", "are ImageNet's")}),
    "sun": TrainingSet("the SUN database of scenes", "images", {"scene": ("maybe", "are scenes of SUN's categories")}),
    "things-images": TrainingSet("the THINGS database", "images", {"things": ("yes", "are the THINGS database's")}),
    "laion-400m": TrainingSet("400 million captioned images of the web", "images", _WEB),
    "laion-2b-en": TrainingSet("2 billion images of the web with English captions", "images", _WEB),
    "laion-5b": TrainingSet("5 billion captioned images of the web", "images", _WEB),
    "laion-aesthetics": TrainingSet("the parts of LAION that a network rates as beautiful", "images", _WEB),
    "coyo-700m": TrainingSet("700 million captioned images of the web", "images", _WEB),
    "open-images": TrainingSet("9 million photographs of Flickr", "images", _WEB),
    "openai-wit": TrainingSet("the 400 million captioned web images of OpenAI's CLIP, not published", "images", _WEB),
    "unpublished-images": TrainingSet(
        "images that the model's makers do not name",
        "images",
        dict.fromkeys(_WEB, ("maybe", "may be among them: they are not published")),
    ),
    "simulated-scenes": TrainingSet("scenes of this package's simulator, of designs that no data set uses", "images"),
    "nsd": TrainingSet(
        "responses of the Natural Scenes Dataset",
        "responses",
        dict.fromkeys(("coco-train2017", "coco-val2017", "coco"), ("maybe", _SHOWN)),
        {"nsd": ("yes", "NSD's own test trials are among it")},
    ),
    # nsd_stim_info_merged.csv flags all 1,000 shared images as BOLD5000's.
    "bold5000": TrainingSet(
        "responses of BOLD5000",
        "responses",
        dict.fromkeys(("coco-train2017", "coco", "imagenet", "scene"), ("maybe", _SHOWN)),
        {
            "nsd": ("yes", "all 1,000 shared images are BOLD5000's"),
            "bold5000": ("yes", "BOLD5000's own test trials are among it"),
        },
    ),
    "god": TrainingSet(
        "responses of Generic Object Decoding",
        "responses",
        {"imagenet": ("maybe", _SHOWN)},
        {"god": ("yes", "GOD's own test trials are among it")},
    ),
    "things-fmri": TrainingSet(
        "responses of THINGS-fMRI",
        "responses",
        {"things": ("maybe", _SHOWN)},
        {"things": ("yes", "THINGS-fMRI's own test trials are among it")},
    ),
    "hcp": TrainingSet("the Human Connectome Project's fMRI, without pictures of any set here", "responses"),
}


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


def overlap(name: str, scored: ScoredPictures) -> Overlap:
    """Return whether a training set holds test pictures, as far as is known.

    Args:
        name: A training set.
        scored: The test pictures.

    Raises:
        UnknownNameError: If there is no such training set.
    """
    training, count = find(name), len(scored.origins)
    if scored.dataset in training.responses:
        return Overlap(*training.responses[scored.dataset], count)
    sources = Counter(None if origin is None else origin.partition(":")[0] for origin in scored.origins)
    for holds in ("yes", "maybe"):
        found: Counter[str] = Counter()
        for source, pictures in sources.items():
            known, why = training.pictures.get(source or "", ("no", ""))
            found[why] += pictures if known == holds else 0
        if found.total():
            why = "; ".join(f"{pictures} of {count} test pictures {why}" for why, pictures in (+found).items())
            return Overlap(holds, why, found.total())
    if sources[None] or not count:
        which = f"{sources[None]} of {count} test pictures of {scored.dataset!r} come from"
        return Overlap("unknown", f"nothing is known of where {which}", sources[None])
    return Overlap("no", "not known to hold any")
