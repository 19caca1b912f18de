"""Generators as Ray Serve deployments: whole render batches for the render stage, single pictures over HTTP.

A batch request carries its own seeds and is never merged with another, so that a picture cannot depend on its company
more than rounding allows, and no time is lost waiting for requests to gather. Single pictures are gathered by the HTTP
route and take the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bench.core import cluster
from bench.core.errors import OptionError, ReconbenchError
from bench.core.identity import digest
from bench.data.shards.pictures import png_of
from bench.generators.base import InputSpec
from bench.generators.choice import GeneratorChoice
from bench.rendering.inputs import checked_inputs

MAX_REQUEST_BYTES = 64 << 20
_HEALTH_PERIOD_S = 1.0


@dataclass(frozen=True)
class Scale:
    """How a generator is deployed.

    Attributes:
        replicas: Copies of the generator.
        cpus: CPUs, and on a CPU the torch threads, of a replica.
        gpus: Share of a GPU of a replica; 0 runs on the CPU.
        max_ongoing_requests: Batches a replica holds: one that renders, the others on their way.
    """

    replicas: int = 1
    cpus: int = 1
    gpus: float = 0.0
    max_ongoing_requests: int = 2


class Renderer:
    """One replica: one generator on one device."""

    def __init__(self, chosen: GeneratorChoice, threads: int) -> None:
        # One thread renders, so that requests queue instead of competing; torch's setting belongs to the thread.
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._generator = self._thread.submit(chosen.load, self._device).result()

    async def render_batch(self, inputs: dict[str, np.ndarray], seeds: list[int]) -> np.ndarray:
        """Render one whole batch.

        Args:
            inputs: For each input `(B, *shape)`.
            seeds: B seeds.

        Returns:
            `(B, 3, H, W)` uint8.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._render, inputs, seeds)

    def _render(self, inputs: dict[str, np.ndarray], seeds: list[int]) -> np.ndarray:
        """Render on the replica's own thread."""
        # Arguments come from shared memory and are read-only, which torch warns about: copy, they are small.
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in inputs.items()}
        return np.asarray(self._generator.render(tensors, seeds).numpy())

    async def describe(self) -> dict[str, Any]:
        """Return the replica's process and device."""
        return {"pid": os.getpid(), "device": str(self._device)}


class SinglePictures:
    """The HTTP route: a POST of one picture's inputs as `.npz` gives a PNG; requests are gathered into batches.

    The body is what `numpy.savez(body, latent=..., seed=...)` writes: an array for each input, without a batch axis,
    and the picture's seed.
    """

    def __init__(self, renderer: DeploymentHandle, specs: Mapping[str, InputSpec], batch_size: int) -> None:
        self._renderer, self._specs = renderer, specs
        self._gather.set_max_batch_size(batch_size)

    async def __call__(self, request: Request) -> Response:
        """Answer one request: 200 and a PNG, or 400, 405 or 413 and what is wrong."""
        if request.method != "POST":
            return PlainTextResponse("POST the inputs and the seed of one picture as .npz", 405)
        if int(request.headers.get("content-length", 0)) > MAX_REQUEST_BYTES:
            return PlainTextResponse(f"at most {MAX_REQUEST_BYTES} bytes", 413)
        try:
            inputs, seed = parse_single(await request.body(), self._specs)
        except (ReconbenchError, ValueError) as error:
            return PlainTextResponse(str(error), 400)
        picture = await self._gather((inputs, seed))
        if isinstance(picture, str):
            return PlainTextResponse(picture, 400)
        return Response(png_of(picture), media_type="image/png")

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.02)
    async def _gather(self, items: list[tuple[dict[str, np.ndarray], int]]) -> list[np.ndarray | str]:
        """Render gathered requests; those that give the same inputs in the same shapes go together.

        Returns:
            For each request its picture `(3, H, W)`, or what the generator has against its inputs.
        """
        groups: dict[str, list[int]] = {}
        for index, (inputs, _) in enumerate(items):
            key = repr(sorted((name, values.shape) for name, values in inputs.items()))
            groups.setdefault(key, []).append(index)
        answers: dict[int, np.ndarray | str] = {}
        for members in groups.values():
            names = items[members[0]][0].keys()
            batch = {name: np.stack([items[i][0][name] for i in members]) for name in names}
            try:
                pictures = await self._renderer.render_batch.remote(batch, [items[i][1] for i in members])
            except ValueError as error:
                answers |= dict.fromkeys(members, str(getattr(error, "cause", error)))
            else:
                answers |= dict(zip(members, pictures, strict=True))
        return [answers[index] for index in range(len(items))]


def parse_single(body: bytes, specs: Mapping[str, InputSpec]) -> tuple[dict[str, np.ndarray], int]:
    """Return the inputs (no batch axis) and the seed of an `.npz` body; nothing in it is unpickled.

    Raises:
        ValueError: If it is no such file, has no seed, or its inputs cannot be right.
    """
    if not zipfile.is_zipfile(io.BytesIO(body)):
        raise ValueError("the body is not an .npz file")
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"the body is not an .npz file of plain arrays: {error}") from None
    seed = arrays.pop("seed", None)
    if seed is None or seed.shape != () or not np.issubdtype(seed.dtype, np.integer) or seed < 0:
        raise ValueError("the body must hold 'seed', one non-negative integer")
    batch = checked_inputs({name: values[None] for name, values in arrays.items()}, 1, specs, "request")
    return {name: values[0] for name, values in batch.items()}, int(seed)


def application(chosen: GeneratorChoice, scale: Scale, http_batch: int | None = None) -> serve.Application:
    """Return the Serve application of a generator.

    Args:
        chosen: The generator and its options.
        scale: Its replicas.
        http_batch: Pictures that the HTTP route renders together at most; None for no HTTP route.
    """
    deployment = serve.deployment(
        Renderer,
        name="Renderer",
        num_replicas=scale.replicas,
        max_ongoing_requests=scale.max_ongoing_requests,
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=5.0,
        graceful_shutdown_wait_loop_s=0.1,  # nothing is left to wait for when an application is deleted
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
    )
    renderer = deployment.bind(chosen, scale.cpus)
    if http_batch is None:
        return renderer
    # Every picture of two full batches a replica may wait at once: fewer would leave batches half empty.
    waiting = http_batch * scale.replicas * scale.max_ongoing_requests
    singles = serve.deployment(
        SinglePictures, name="SinglePictures", max_ongoing_requests=waiting, ray_actor_options={"num_cpus": 0}
    )
    return singles.bind(renderer, chosen.kind.inputs, http_batch)


@contextlib.contextmanager
def running(port: int | None = None) -> Iterator[None]:
    """Start Serve on the cluster joined, and shut it down again; one that runs already is used and left alone.

    Args:
        port: Port on 127.0.0.1 of the HTTP route, or None for no HTTP at all.

    Raises:
        OptionError: If a port is asked for and Serve runs already: its port cannot be changed.
    """
    cluster.quieten()  # importing Serve set its logger up anew, starting it does so again
    there = serve.status()
    if there.proxies or there.applications:
        if port is not None:
            raise OptionError(f"Serve already runs on this cluster; port {port} can only be set where it does not")
        yield
        return
    location = "Disabled" if port is None else "HeadOnly"
    serve.start(proxy_location=location, http_options={"host": "127.0.0.1", "port": port or 0})
    cluster.quieten()
    try:
        yield
    finally:
        # Ray prints on standard output that requests to the controller, which ends itself, fail.
        with contextlib.redirect_stdout(io.StringIO()):
            serve.shutdown()


@contextlib.contextmanager
def deployed(chosen: GeneratorChoice, scale: Scale, http_batch: int | None = None) -> Iterator[DeploymentHandle]:
    """Deploy a generator, yield the handle of its replicas, and delete it again.

    Args:
        chosen: The generator and its options.
        scale: Its replicas.
        http_batch: Pictures that the HTTP route renders together at most; None for no HTTP route.
    """
    name = f"{chosen.name}-{digest(chosen.identity(render=True))}"
    app = application(chosen, scale, http_batch)
    serve.run(app, name=name, route_prefix=None if http_batch is None else "/")
    try:
        yield serve.get_deployment_handle("Renderer", app_name=name)
    finally:
        serve.delete(name)
