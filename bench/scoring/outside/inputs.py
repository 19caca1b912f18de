"""From what the command line of `score` was given to what scoring needs: true images, pictures, which is which.

Pictures that were made elsewhere are written into the runs folder like rendered ones, under the digest of their pixels
and of the stimuli they answer; from there on nothing tells them from ours, except that the record says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.core.errors import BadDataError, MissingDataError, OptionError
from bench.core.identity import digest
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.datasets.nsd.design import read_design
from bench.data.shard_set import ShardSet
from bench.data.shards.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from bench.data.shards.pictures import SEAL, ImageSet, claim, keys_of, png_of, read_images, seal, write_part
from bench.data.shards.stimuli import stimuli_table
from bench.records.parts import Event, now
from bench.scoring.outside import matching, orders
from bench.scoring.outside.files import Pictures, ids_in_names, read_ids, read_place
from bench.scoring.outside.order_check import FEWEST, OrderFinding, check_order, judge_for
from eval.networks import _weights as network_weights
from eval.protocols.base import find

PART = 256
"""Pictures a file, so that no column of encoded pictures grows beyond what Parquet's binary type holds."""
FILE_NAMES = "file-names"
ELSEWHERE = "pictures were made elsewhere"


@dataclass(frozen=True)
class ScoreArguments:
    """What the command line was given; see its help.

    Attributes:
        images: Place of the pictures by subject.
        runs: Runs folder.
        protocol: Name of the protocol.
        shards: Trial shards that hold the true images; or
        truth: A folder or file of true images.
        dataset: Name of the data where the true images come from `truth`.
        key: Name of the array in files that hold several.
        ids: File of stimulus numbers.
        order: Named order, or `file-names`.
        truth_order: Named order of the images of `truth`, where it is not that of the pictures.
        design: NSD's `nsd_expdesign.mat`, for named orders without shards.
        weights: Folder of network weights, `untrained`, or None.
        seed: Of the check of the order.
    """

    images: Mapping[int, str]
    runs: Folder
    protocol: str
    shards: str | None = None
    truth: str | None = None
    dataset: str = "given-truth"
    key: str | None = None
    ids: str | None = None
    order: str | None = None
    truth_order: str | None = None
    design: str | None = None
    weights: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """What scoring needs.

    Attributes:
        data: The true images.
        images: Pictures by subject.
        tested: Stimuli by subject, ascending.
        reasons: Why the row belongs to the open division.
        events: What happened, for the record.
        findings: What the check of the order found, by subject.
    """

    data: ShardSet
    images: Mapping[int, ImageSet]
    tested: Mapping[int, tuple[int, ...]]
    reasons: tuple[str, ...]
    events: tuple[Event, ...]
    findings: Mapping[int, OrderFinding]


def prepare_inputs(given: ScoreArguments) -> Inputs:
    """Read everything, check it, and write pictures that were made elsewhere into the runs folder.

    Raises:
        OptionError: If options contradict each other or one is missing.
        BadDataError: If pictures, ids or true images do not fit together.
        MissingDataError: If something is not there.
        CorruptFileError: If a file cannot be read.
        MissingWeightsError, WrongWeightsError: If the weights of the protocol's networks are not here, or others'.
    """
    if (given.shards is None) == (given.truth is None):
        raise OptionError("the true images come from --shards or from --truth: give one of them")
    if given.ids and given.order:
        raise OptionError("--ids and --order both say which stimulus each picture is: give one of them")
    for network in find(given.protocol).networks:
        network_weights.verify(network, given.weights)
    # Everything is read and checked before anything is written.
    read = {s: read_place(place, given.key) for s, place in given.images.items() if not Folder.at(place).exists(SEAL)}
    ids = {subject: _ids(given.order, pictures, subject, given) for subject, pictures in read.items()}
    data = _from_shards(given) if given.shards else _from_truth(given, ids, read)
    for subject, numbers in ids.items():
        matching.check_known(numbers, data.shared.tolist(), data.stimuli, given.images[subject])
        if given.shards:  # those of --truth were compared before they were written
            true = shard_set.pictures(data, numbers[:1])[numbers[0]]
            matching.check_upright(read[subject], true.shape[:2], given.images[subject])
    findings = {s: f for s in read if (f := _order_of(read[s], ids[s], data, given)) is not None}
    events = tuple(_event(s, read[s], findings.get(s)) for s in read)
    images = {
        s: _written(read[s], ids[s], s, given.runs) if s in read else images_of(Folder.at(given.images[s]))
        for s in given.images
    }
    tested = {subject: _shown(each) for subject, each in images.items()}
    doubts = tuple(f"subject {s}: {f}" for s, f in findings.items() if f.suspicious)
    if read and given.shards:
        # The shards lend the true images only: which betas and voxels the pictures come from is not known.
        data = replace(data, shards=Folder(f"{data.folder}/unstated.unstated.unstated@{data.manifest.digest}"))
    return Inputs(data, images, tested, (ELSEWHERE, *doubts), events, findings)


def _ids(order: str | None, pictures: Pictures, subject: int, given: ScoreArguments) -> tuple[int, ...]:
    """Return the stimulus of each picture.

    Raises:
        OptionError: If nothing says which stimulus each picture is.
        BadDataError: If there are more or fewer than pictures.
    """
    where = given.images.get(subject, given.truth or "")
    if order == FILE_NAMES:
        return ids_in_names(pictures.names, where)
    if order is not None:
        found, source = _named(order, subject, given), f"order {order!r}"
    elif given.ids is not None:
        found, source = read_ids(Path(given.ids)), given.ids
    elif given.truth is not None:
        return tuple(range(len(pictures.values)))
    else:
        known = ", ".join((FILE_NAMES, *orders.ORDERS))
        raise OptionError(f"{where}: --ids FILE or --order NAME says which stimulus each picture is; orders: {known}")
    if len(found) != len(pictures.values):
        raise BadDataError(f"{where} holds {len(pictures.values)} pictures, {source} has {len(found)}")
    return found


def _named(order: str, subject: int, given: ScoreArguments) -> tuple[int, ...]:
    """Return the stimuli of a named order, from the design file or the shards.

    Raises:
        OptionError: If neither was given.
    """
    orders.find_order(order)
    if given.design is not None:
        design = read_design(Path(given.design))
        return orders.stimuli_of(order, design.shared, orders.shown_by_design(design))
    if given.shards is None:
        raise OptionError(f"order {order!r} is computed from --shards or from --design (nsd_expdesign.mat)")
    data = shard_set.open_data(Folder.at(given.shards))
    return orders.stimuli_of(order, data.shared, orders.shown_by_shards(data.shards, data.manifest, subject))


def _from_shards(given: ScoreArguments) -> ShardSet:
    """Return the data of `--shards`."""
    if given.truth_order is not None:
        raise OptionError("--truth-order belongs to --truth; shards know the number of every image")
    return shard_set.open_data(Folder.at(given.shards or ""))


def _from_truth(given: ScoreArguments, ids: Mapping[int, Sequence[int]], read: Mapping[int, Pictures]) -> ShardSet:
    """Return data made of the true images of `--truth`, written into the runs folder as a set of stimuli.

    Raises:
        BadDataError: If there are several samples an image, or another number of images than pictures.
    """
    place = given.truth or ""
    truth = read_place(place, given.key)
    if truth.values.shape[1] != 1:
        found = f"{place} holds {truth.values.shape[1]} samples an image"
        raise BadDataError(f"{found}; true images have one: exchange --truth and --images?")
    first = next(iter(ids.values()), None)
    if given.truth_order is not None or first is None:
        numbers = _ids(given.truth_order, truth, 0, replace(given, images={}))
    elif any(list(other) != list(first) for other in ids.values()):
        raise BadDataError(f"subjects were shown different images: name those of {place} with --truth-order")
    elif len(first) != len(truth.values):
        counts = f"{len(truth.values)} true images, {len(first)} pictures were given"
        raise BadDataError(f"{place} holds {counts}: every picture needs its own, in the same order (or --truth-order)")
    else:
        numbers = tuple(first)
    for subject, own in ids.items():
        matching.check_known(own, numbers, place, given.images[subject])
        matching.check_upright(read[subject], truth.values.shape[-2:], given.images[subject])
    return _stimuli(truth.values[:, 0], numbers, given)


def _stimuli(truth: np.ndarray, numbers: Sequence[int], given: ScoreArguments) -> ShardSet:
    """Return true images `(N, 3, H, W)` as a finished set of stimuli."""
    order = np.argsort(numbers)
    source = {"truth": Pictures(truth[order][:, None]).digest, "stimuli": digest([int(numbers[i]) for i in order])}
    address = digest(source)
    folder = given.runs / "truth" / f"stimuli@{address}"
    if not folder.exists(MANIFEST):
        files = []
        for start in range(0, len(order), PART):
            rows = order[start : start + PART]
            encoded = [png_of(truth[row]) for row in rows]
            own, n = [numbers[row] for row in rows], len(rows)
            table = stimuli_table(own, encoded, [()] * n, "", [None] * n, [True] * n, [None] * n)
            name = f"part-{start // PART:04d}.parquet"
            files.append(FileEntry(name, n, *folder.write_table(name, table)))
        Manifest("stimuli", given.dataset, address, source, tuple(files)).write(folder)
    manifest = read_manifest(folder)
    # There are no trials: the record's shards are the true images themselves.
    trials = replace(manifest, kind="trials", dataset=given.dataset, stimuli=folder.name)
    shards = given.runs / "truth" / f"unstated.unstated.unstated@{address}"
    return ShardSet(shards, trials, folder, manifest, np.sort(np.asarray(numbers)))


def _order_of(pictures: Pictures, ids: Sequence[int], data: ShardSet, given: ScoreArguments) -> OrderFinding | None:
    """Return what the check of the order found; None where it cannot be made."""
    judge = judge_for(find(given.protocol), given.weights)
    if judge is None or len(ids) < FEWEST:
        return None
    true = shard_set.pictures(data, ids)
    truth = torch.from_numpy(np.stack([true[stimulus].transpose(2, 0, 1) for stimulus in ids]))
    return check_order(torch.from_numpy(pictures.values[:, 0].copy()), truth, judge, given.seed)


def _event(subject: int, pictures: Pictures, finding: OrderFinding | None) -> Event:
    """Return what the record says of pictures that were made elsewhere."""
    order = "not checked: too few pictures, or no trained network" if finding is None else str(finding)
    facts = {"shape": list(pictures.values.shape), "rounded_to_8_bits": pictures.rounded, "order": order}
    suspicious = finding is not None and finding.suspicious
    return Event(now(), "order looks wrong" if suspicious else "pictures read", str(subject), None, facts)


def _written(pictures: Pictures, ids: Sequence[int], subject: int, runs: Folder) -> ImageSet:
    """Write pictures into the runs folder, unless they are there; return them as finished pictures."""
    n, samples = pictures.values.shape[:2]
    # The subject is part of the keys that are written, so equal pictures of two subjects lie apart.
    made = {"images": 1, "made": "elsewhere", "subject": subject}
    description = made | {"pixels": pictures.digest, "stimuli": digest(list(ids))}
    images = ImageSet(digest(description), description, runs / "images" / digest(description))
    if claim(images.folder, description):
        return images
    flat = pictures.values.reshape(n * samples, *pictures.values.shape[2:])
    keys = keys_of(subject, np.repeat(ids, samples), sample=np.tile(np.arange(samples), n))
    seeds = np.zeros(n * samples, np.int64)
    files = []
    for start in range(0, n * samples, PART):
        part = slice(start, start + PART)
        files.append(write_part(images.folder, start, keys.slice(start, PART), seeds[part], flat[part]))
    seal(images.folder, description, files, {})
    return images


def images_of(folder: Folder) -> ImageSet:
    """Return finished pictures by their folder.

    Raises:
        MissingDataError: If the folder was never finished.
    """
    if not folder.exists(SEAL):
        raise MissingDataError(f"no {SEAL} in {folder}: not finished pictures; run the render stage")
    return ImageSet(folder.name, folder.read_json(SEAL)["identity"], folder)


def _shown(images: ImageSet) -> tuple[int, ...]:
    """Return the stimuli that the pictures answer, ascending."""
    return tuple(sorted(set(read_images(images.folder)[0]["stimulus"].to_pylist())))
