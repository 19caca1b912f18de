"""Stage `score`: pictures become one scored record.

A row of the board is one score: a system's or a control's pictures of every subject under one protocol. The per-image
values lie in `samples.parquet`, everything else in `record.json`, which is written last.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import ray
import torch

from bench.core import cluster, console
from bench.core.errors import BadDataError, MissingDataError, OptionError
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shards.pictures import read_images
from bench.records import record
from bench.records.parts import now
from bench.scoring import declaration, weights_list
from bench.scoring.entries import Entry, ScoringTask, SubjectScores, score_link
from bench.scoring.leakage import audit_declaration
from bench.scoring.outside import orders
from bench.scoring.outside.inputs import FILE_NAMES, ScoreArguments, prepare_inputs
from bench.scoring.recording import write_score
from eval._scoring.feature_store import FeatureCache
from eval.plugins import base as metric_plugins
from eval.statistics.bootstrap import derangement
from eval.suite import score as score_pictures

CHANCE_PAIRINGS = 5


def score_entries(entries: Sequence[Entry], task: ScoringTask, advance: console.Advance) -> None:
    """Score every row in Ray tasks, one a subject, and write the records; rows with a record are skipped.

    Args:
        entries: What to score.
        task: How.
        advance: Counts scored subjects of entries.
    """
    started, todo = now(), []
    for entry in entries:
        if (task.runs / record.SCORES / score_link(entry, task).id).exists(record.RECORD_FILE):
            advance(len(entry.images), "already scored")
        else:
            todo.append(entry)
    pending: dict[Any, tuple[int, list[int]]] = {}
    for subject in sorted({subject for entry in todo for subject in entry.images}):
        mine = [place for place, entry in enumerate(todo) if subject in entry.images]
        asked = [todo[place] for place in mine]
        pending[_score_subject.options(num_cpus=task.cpus).remote(asked, subject, task)] = (subject, mine)
    done: list[dict[int, SubjectScores]] = [{} for _ in todo]
    while pending:
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        subject, mine = pending.pop(ready)
        for place, scored in zip(mine, ray.get(ready), strict=True):
            done[place][subject] = scored
        advance(len(mine), f"subject {subject}")
    for entry, scores in zip(todo, done, strict=True):
        write_score(entry, scores, task, started)


@ray.remote(num_cpus=1)
def _score_subject(entries: Sequence[Entry], subject: int, task: ScoringTask) -> list[SubjectScores]:
    """Score one subject's pictures of every row; the features of the true pictures are computed once for all."""
    torch.set_num_threads(task.cpus)
    stimuli = tuple(task.tested[subject])
    truth = shard_set.pictures(task.data, stimuli)
    true = torch.from_numpy(np.stack([truth[s] for s in stimuli]).transpose(0, 3, 1, 2).copy())
    features: FeatureCache = {}
    return [_score_pictures(entry, subject, task, true, features) for entry in entries]


def _score_pictures(
    entry: Entry, subject: int, task: ScoringTask, truth: torch.Tensor, features: FeatureCache
) -> SubjectScores:
    """Score one subject's pictures of one row against the true ones, `(N, 3, H, W)` uint8.

    Raises:
        BadDataError: If a single picture is to be paired with a wrong truth.
        MissingDataError: If a stimulus has no picture.
    """
    clock = time.monotonic(), time.process_time()
    stimuli = tuple(task.tested[subject])
    shown, seeds, digests = _pictures_of(entry.images[subject].folder, stimuli)
    if entry.wrong_pairs:
        if len(stimuli) < 2:
            raise BadDataError(f"row {entry.name!r}: wrong pairs need at least 2 test pictures, got {len(stimuli)}")
        rng = np.random.default_rng([task.seed, subject])
        orders = [derangement(len(stimuli), rng) for _ in range(CHANCE_PAIRINGS)]
        shown = np.stack([shown[order, 0] for order in orders], axis=1)
    given = torch.from_numpy(shown)
    scores = score_pictures(
        given, truth, task.protocol, task.weights, seed=task.seed, features=features, plugins=task.plugins
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spent = time.process_time() - clock[1], time.monotonic() - clock[0]
    return SubjectScores(scores, stimuli, seeds, digests, *spent, memory)


def _pictures_of(folder: Folder, stimuli: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...], tuple[str, ...]]:
    """Return `(N, S, 3, H, W)` uint8 pictures of the stimuli in their order, with each stimulus' seed and digest.

    S counts samples and showings. Where stimuli have different numbers of showings, the missing ones repeat the
    present ones in turn, as MindEye2's evaluation does.

    Raises:
        MissingDataError: If a stimulus has no picture.
    """
    table, values = read_images(folder)
    rows: dict[int, list[int]] = {}
    for row, stimulus in enumerate(table["stimulus"].to_pylist()):
        rows.setdefault(stimulus, []).append(row)
    missing = [stimulus for stimulus in stimuli if stimulus not in rows]
    if missing:
        raise MissingDataError(f"{folder} holds no picture of stimuli {missing[:5]} ({len(missing)} in all)")
    depth = max(len(rows[stimulus]) for stimulus in stimuli)
    chosen = np.array([[rows[s][i % len(rows[s])] for i in range(depth)] for s in stimuli])
    seeds = table["seed"].to_numpy()
    digests = [hashlib.sha256(values[list(dict.fromkeys(mine))].tobytes()).hexdigest() for mine in chosen]
    return values[chosen], tuple(int(seeds[mine[0]]) for mine in chosen), tuple(digests)


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = console.parser(
        "score",
        "Score pictures against the true ones and write a record. Pictures are rendered ones, a folder of PNG or JPEG "
        "(or of one such folder a sample), .pt, .npy, .npz or HDF5 with (N, 3, H, W) or (N, S, 3, H, W). "
        "`score weights` lists the networks' weights and downloads them.",
        "reconbench score --name theirs --images 1=recons.pt --order nsd-shared-1000-sorted \\\n"
        "      --shards .reconbench/data/nsd/...@0123456789abcdef --runs .reconbench/runs/mine",
    )
    known = ", ".join(orders.ORDERS)
    cli.add_argument("--images", nargs="+", required=True, metavar="SUBJECT=PATH", help="pictures of each subject")
    cli.add_argument("--name", required=True, help="name of the row")
    cli.add_argument("--shards", help="trial shards that name the true pictures")
    cli.add_argument("--truth", metavar="PATH", help="the true pictures, instead of --shards: folder or file")
    cli.add_argument("--dataset", default="given-truth", help="name of the data, with --truth")
    cli.add_argument("--key", metavar="NAME", help="name of the array in a file that holds several")
    cli.add_argument("--ids", metavar="FILE", help="0-based stimulus of each picture: .npy, or text with one a line")
    cli.add_argument("--order", metavar="NAME", help=f"stimulus of each picture: {FILE_NAMES}, {known}")
    cli.add_argument("--truth-order", metavar="NAME", help="the same for --truth, where it differs from the pictures")
    cli.add_argument("--design", metavar="FILE", help="nsd_expdesign.mat, for named orders without shards")
    said = ", ".join(each.name for each in fields(declaration.Declaration))
    cli.add_argument(
        "--declare",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help=f"what is known of how the pictures were made: {said}; what is not declared is noted as not audited",
    )
    cli.add_argument("--runs", required=True, help="where the record goes")
    cli.add_argument("--protocol", default="scenes-1", help="how pictures become numbers")
    cli.add_argument("--weights", help="folder of network weights, or the word untrained")
    cli.add_argument("--metric", nargs="+", default=[], metavar="NAME", help="further, unranked: seed, module:OBJECT")
    cli.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    return cli


def run(argv: Sequence[str]) -> int:
    """Parse, score one row, print its values; or list weights."""
    if argv and argv[0] == "weights":
        return weights_list.run(argv[1:])
    options = vars(_parser().parse_args(argv))
    name, said = options.pop("name"), declaration.parse(options.pop("declare"))
    places = _places(options.pop("images"))
    plugins = tuple(options.pop("metric"))
    for plugin in plugins:
        metric_plugins.find(plugin).digests(options["weights"])  # what is missing is said before anything is written
    given = ScoreArguments(images=places, runs=Folder.at(options.pop("runs")), **options)
    inputs = prepare_inputs(given)
    for subject, finding in inputs.findings.items():
        style = "bold yellow" if finding.suspicious else ""
        console.console().print(f"subject {subject}: {finding}", style=style, markup=False, soft_wrap=True)
    cluster.connect()
    task = ScoringTask(
        inputs.data, inputs.tested, given.protocol, given.weights, given.runs, given.seed, plugins=plugins
    )
    entry = Entry(
        name,
        "system",
        None,
        inputs.images,
        open_reasons=(*inputs.reasons, *said.open_reasons),
        declared=said.steps,
        leakage=audit_declaration(said, shard_set.scored_pictures(inputs.data, set().union(*inputs.tested.values()))),
        events=inputs.events,
    )
    with console.progress("score", len(inputs.images)) as advance:
        score_entries([entry], task, advance)
    scores = task.runs / record.SCORES
    for metric, value in (scores / score_link(entry, task).id).read_json(record.RECORD_FILE)["metrics"].items():
        shown = value["status"] if value["value"] is None else f"{value['value']:.4f}  {value['interval']}"
        console.console().print(f"{metric:<18} {shown}", markup=False)
    for found in entry.leakage:
        style = "bold yellow" if found.excludes else ""
        console.console().print(f"{found.name}: {found.finding}", style=style, markup=False, soft_wrap=True)
    return 0


def _places(texts: Sequence[str]) -> dict[int, str]:
    """Return the place of each subject's pictures from texts `SUBJECT=PATH`.

    Raises:
        OptionError: If one is not of that form, or a subject stands there twice.
    """
    form = "SUBJECT=PATH with subjects from 1"
    named = console.pairs(texts, "--images", form)
    for subject, place in named.items():
        # As it is written on records, so that "1" and "01" are not two subjects.
        if not (subject.isdecimal() and str(int(subject)) == subject != "0"):
            raise OptionError(f"--images takes {form}, got {f'{subject}={place}'!r}")
    return {int(subject): place for subject, place in named.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; return its exit status."""
    return console.guard(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
