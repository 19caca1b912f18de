"""Runs many Ray tasks with few in flight, where their files are, and yields results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Item = TypeVar("Item")
QUEUED_PER_CPU = 2


def placement(everywhere: bool, memory: int) -> dict[str, Any]:
    """Return Ray options of a task that needs one CPU and some memory.

    Args:
        everywhere: Whether every node of the cluster sees the task's files (S3, a network file system). Where not,
            the files lie on the driver's node and the task runs there.
        memory: Bytes the task may need, so that Ray does not start more of them than fit.
    """
    if everywhere:
        return {"num_cpus": 1, "memory": memory}
    here = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    # A head node is often started with no CPUs to offer: its own files must be reached from it all the same.
    cpus = 1 if resources.get("CPU", 0) >= 1 else 0
    strategy = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    return {"num_cpus": cpus, "memory": memory, "scheduling_strategy": strategy}


def ordered(submit: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
    """Yield the results of one task an item, in the order of the items.

    A bounded number of tasks is in flight, so that results wait in the object store for a few items only.

    Args:
        submit: Starts an item's task and returns its reference.
        items: What to do.

    Raises:
        Exception: What a task raises, when its turn comes; tasks still in flight are cancelled.
    """
    limit = max(2, QUEUED_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    try:
        for item in items:
            if len(waiting) == limit:
                yield ray.get(waiting.pop(0))
            waiting.append(submit(item))
        while waiting:
            yield ray.get(waiting.pop(0))
    finally:
        for reference in waiting:
            ray.cancel(reference)
