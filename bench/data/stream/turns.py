"""Deals an epoch to several training workers: Ray Data carries the order, shared memory carries the betas.

Every worker draws the same seeded permutation of a role's samples (`bench.fitting.subject_stream`). What is dealt, by
`Dataset.streaming_split`, is the numbers of its batches, in turn: each worker sees its disjoint share, together they
see every sample once, and the sequence of batches is the same whatever the number of workers. Nothing but these numbers
is moved or buffered, so the shuffle costs no more than reading rows at random from the node's shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import ray
import ray.data
import ray.train


def turns(samples: int, size: int) -> ray.data.Dataset:
    """Return the numbers of an epoch's batches as a dataset with a block for each.

    Ray Train splits it among its workers; see `bench.fitting.team`.

    Args:
        samples: Samples of the role, `SubjectStream.n_trials`.
        size: Samples a batch.
    """
    batches = math.ceil(samples / size)
    # Items are blocks in memory already: an epoch runs no task for them, where `ray.data.range` would run one each.
    return ray.data.from_items([{"turn": number} for number in range(batches)], override_num_blocks=max(batches, 1))


def in_turn() -> ray.train.DataConfig:
    """Return how Ray Train splits `turns`: in their order, and to each worker equally many.

    Workers reduce gradients in step, so up to `workers - 1` batches of an epoch are left out; which ones changes with
    the epoch's order.
    """
    options = ray.data.ExecutionOptions(preserve_order=True)  # else the order depends on which block is ready first
    return ray.train.DataConfig(execution_options=options)


def dealt(share: ray.data.DataIterator) -> Iterator[int]:
    """Yield the numbers of one epoch's batches that are this worker's."""
    for row in share.iter_rows():
        yield int(row["turn"])
