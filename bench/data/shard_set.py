"""Opens what the stages after `prepare` work on: shards, their stimuli, target tables, as references for fits.

data = open_data(Folder.at("s3://lab/data/nsd/betas_fithrf_GLMdenoise_RR.func1pt8mm.nsdgeneral@0123456789abcdef"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from bench.core.errors import MissingDataError, OptionError
from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data.shards.manifest import MANIFEST, Manifest, read_manifest
from bench.data.shards.stimuli import read_column, read_stimuli
from bench.data.shards.targets import TargetTable, read_targets
from bench.data.sources.pictures import decode
from bench.data.splits import Split, SplitRole
from bench.data.stream.load import FIT, TEST, Query, load
from bench.data.stream.rules import Normalise
from bench.data.training_sets import ScoredPictures


@dataclass(frozen=True)
class ShardSet:
    """A set of trial shards with its stimuli.

    Attributes:
        shards: The set's folder.
        manifest: Its manifest.
        stimuli: Folder of the stimuli it refers to.
        stimuli_manifest: Their manifest.
        shared: Sorted 0-based numbers of the shared stimuli among them: the test pictures.
    """

    shards: Folder
    manifest: Manifest
    stimuli: Folder
    stimuli_manifest: Manifest
    shared: np.ndarray

    @property
    def folder(self) -> Folder:
        """The dataset's folder, which holds shards, stimuli and targets."""
        return Folder(self.shards.uri.rpartition("/")[0])

    @property
    def label_names(self) -> Mapping[str, Mapping[str, int]]:
        """Label numbers by atlas and name, as the source's own tables give them."""
        names: Mapping[str, Mapping[str, int]] = self.manifest.source.get("label_names", {})
        return names

    def load(
        self,
        subjects: Sequence[int],
        parts: tuple[tuple[SplitRole, ...], ...] = (FIT, TEST),
        sessions: tuple[int, ...] | None = None,
        normalise: Normalise = "session",
    ) -> list[dict[int, Any]]:
        """Return, for each part of the split, references to the subjects' trials; see `bench.data.stream.load`."""
        return load(Query(self.shards, tuple(subjects), Split(), parts, sessions, normalise), self.shared)


def open_data(shards: Folder) -> ShardSet:
    """Open a set of trial shards and the stimuli it refers to.

    Raises:
        MissingDataError: If the shards or their stimuli are not there or not finished.
        CorruptFileError: If a stimuli file differs from its manifest.
    """
    manifest = read_manifest(shards)
    if manifest.kind != "trials":
        raise MissingDataError(f"{shards} holds {manifest.kind}, trial shards are needed")
    stimuli = Folder(shards.uri.rpartition("/")[0]) / manifest.stimuli
    stimuli_manifest = read_manifest(stimuli)
    table = read_stimuli(stimuli, stimuli_manifest, ["stimulus", "shared"])
    shared = table.filter(table["shared"])["stimulus"].to_numpy()
    return ShardSet(shards, manifest, stimuli, stimuli_manifest, np.sort(shared))


def pictures(data: ShardSet, stimuli: Iterable[int]) -> dict[int, np.ndarray]:
    """Return pictures of some stimuli: `(H, W, 3)` uint8 RGB by stimulus.

    Raises:
        MissingDataError: If a stimulus is not in the set.
        CorruptFileError: If a picture cannot be decoded.
    """
    found = read_column(data.stimuli, data.stimuli_manifest, stimuli, "image", "picture")
    return {stimulus: decode(image, f"{data.stimuli}, stimulus {stimulus}") for stimulus, image in found.items()}


def captions(data: ShardSet, stimuli: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Return the captions of some stimuli, in the source's order; a stimulus may have none.

    Raises:
        MissingDataError: If a stimulus is not in the set.
    """
    found = read_column(data.stimuli, data.stimuli_manifest, stimuli, "captions", "caption")
    return {stimulus: tuple(texts) for stimulus, texts in found.items()}


def scored_pictures(data: ShardSet, stimuli: Iterable[int]) -> ScoredPictures:
    """Return what is known of where some test pictures come from, for the leakage audit.

    Raises:
        MissingDataError: If a stimulus is not in the set.
    """
    wanted = sorted({int(stimulus) for stimulus in stimuli})
    table = read_stimuli(data.stimuli, data.stimuli_manifest, ["stimulus", "origin"])
    origins = dict(zip(table["stimulus"].to_pylist(), table["origin"].to_pylist(), strict=True))
    if missing := [stimulus for stimulus in wanted if stimulus not in origins]:
        raise MissingDataError(f"{data.stimuli} does not hold stimuli {missing[:5]} ({len(missing)} in all)")
    return ScoredPictures(data.manifest.dataset, tuple(origins[stimulus] for stimulus in wanted))


def target_refs(folders: Mapping[str, Folder]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return references to target tables and their content digests, by `<generator>.<target>`."""
    refs = {name: ray.put(TargetTable(*read_targets(folder))) for name, folder in folders.items()}
    return refs, {name: read_manifest(folder).content_digest for name, folder in folders.items()}


def find_targets(data: ShardSet, digests: Mapping[str, str]) -> dict[str, Folder]:
    """Return the target shards with these content digests, by `<generator>.<target>`.

    Raises:
        MissingDataError: If a target is not there; run the targets stage.
    """
    folders = {}
    for name, wanted in digests.items():
        targets = data.folder / "targets"
        sets = [targets / each for each in targets.names() if each.startswith(f"{name}@")]
        match = [s for s in sets if s.exists(MANIFEST) and read_manifest(s).content_digest == wanted]
        if not match:
            raise MissingDataError(f"no target shards {name} with content {wanted} in {targets}; run the targets stage")
        folders[name] = match[0]
    return folders


def tested_stimuli(test: Mapping[int, Any], limit: int | None = None) -> dict[int, tuple[int, ...]]:
    """Return each subject's test stimuli, ascending.

    Args:
        test: References to each subject's test trials.
        limit: Keep only the first so many of those that all subjects saw; None keeps each subject's own.

    Raises:
        OptionError: If `limit` is less than 1.
        MissingDataError: If the subjects have fewer test stimuli in common than `limit`.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"{limit} test pictures were asked for; at least 1 is needed")
    seen = {subject: set(ray.get(ref).stimulus.tolist()) for subject, ref in test.items()}
    if limit is None:
        return {subject: tuple(sorted(stimuli)) for subject, stimuli in seen.items()}
    common = sorted(set.intersection(*seen.values()))
    if len(common) < limit:
        raise MissingDataError(
            f"{limit} test pictures were asked for; all subjects saw {len(common)} of the shared ones"
        )
    return {subject: tuple(common[:limit]) for subject in seen}


def tested_digest(test: Mapping[int, Sequence[int]]) -> str:
    """Return the digest of the test pictures of each subject."""
    return digest({str(subject): list(stimuli) for subject, stimuli in test.items()})
