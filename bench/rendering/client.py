"""The render stage's client: keeps the replicas busy, retries, and writes every batch as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import tenacity

from bench.core.console import Advance
from bench.core.errors import BadDataError
from bench.core.storage import Folder
from bench.data.shards.manifest import FileEntry
from bench.data.shards.pictures import seal, write_part

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from bench.rendering.serving import Scale

ATTEMPTS = 8
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Batch:
    """Rows `first ... stop - 1` of a job."""

    first: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What a job still has to render.

    Attributes:
        out: Its folder.
        identity: What its pictures are.
        keys: N rows of keys.
        inputs: For each input `(N, *shape)`.
        seeds: `(N,)` int64.
        found: Parts that are there.
        batches: What is missing.
    """

    out: Folder
    identity: Mapping[str, Any]
    keys: pa.Table
    inputs: Mapping[str, np.ndarray]
    seeds: np.ndarray
    found: tuple[FileEntry, ...]
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class BatchResult:
    """A written batch and when it was under way, in seconds of the monotonic clock."""

    entry: FileEntry
    begun: float
    ended: float


def run_plans(
    handle: DeploymentHandle, plans: Sequence[Plan], scale: Scale, batch_size: int, advance: Advance | None
) -> None:
    """Render all plans with exactly `replicas * max_ongoing_requests` requests in flight; seal each when it is whole.

    Fewer requests leave replicas idle; more make Serve's router back off and halve the throughput.
    """
    waiting = {index: len(plan.batches) for index, plan in enumerate(plans)}
    done: dict[int, list[BatchResult]] = {index: [] for index in waiting}
    with ThreadPoolExecutor(scale.replicas * scale.max_ongoing_requests) as pool:
        futures: dict[Future[BatchResult], int] = {
            pool.submit(_render_batch, handle, plan, batch): index
            for index, plan in enumerate(plans)
            for batch in plan.batches
        }
        try:
            for future in as_completed(futures):
                index = futures[future]
                done[index].append(future.result())
                if advance:
                    advance(done[index][-1].entry.rows, plans[index].out.name)
                if len(done[index]) == waiting[index]:
                    _seal(plans[index], done[index], scale, batch_size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _seal(plan: Plan, done: Sequence[BatchResult], scale: Scale, batch_size: int) -> None:
    """Seal a finished plan with what its rendering took."""
    rendered = sum(each.entry.rows for each in done)
    seconds = max(each.ended for each in done) - min(each.begun for each in done)
    timings = {
        "rendered": rendered,
        "seconds": round(seconds, 3),
        "images_per_s": round(rendered / seconds, 2),
        "batch_size": batch_size,
        "replicas": scale.replicas,
        "gpus_per_replica": scale.gpus,
        "cpus_per_replica": scale.cpus,
    }
    seal(plan.out, plan.identity, [*plan.found, *(each.entry for each in done)], timings)


def _render_batch(handle: DeploymentHandle, plan: Plan, batch: Batch) -> BatchResult:
    """Render one batch and write it."""
    begun, rows = time.monotonic(), slice(batch.first, batch.stop)
    inputs = {name: values[rows] for name, values in plan.inputs.items()}
    pictures = _request(handle, inputs, [int(seed) for seed in plan.seeds[rows]])
    count = batch.stop - batch.first
    if pictures.ndim != 4 or pictures.shape[:2] != (count, 3) or pictures.dtype != np.uint8:
        raise BadDataError(f"{plan.out}: the generator gave {pictures.shape} {pictures.dtype} for {count} pictures")
    entry = write_part(plan.out, batch.first, plan.keys.slice(batch.first, count), plan.seeds[rows], pictures)
    return BatchResult(entry, begun, time.monotonic())


def _request(handle: DeploymentHandle, inputs: dict[str, np.ndarray], seeds: list[int]) -> np.ndarray:
    """Return the pictures of one request; a replica that died or is full is asked for again.

    Serve replaces dead replicas by itself; the request that was lost with one is ours to repeat. It gives the same
    pictures, whichever replica takes it.
    """
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

    passing = (RayActorError, BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(passing),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
        reraise=True,
    )
    return retrying(lambda: np.asarray(handle.render_batch.remote(inputs, seeds).result()))
