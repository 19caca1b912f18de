"""Deals an epoch to several training workers: Ray Data carries the order, shared memory carries the betas.

Every worker draws the same seeded permutation of a role's samples (`bench.fit.subject_stream`). What is dealt, by
`Dataset.streaming_split`, is the numbers of its batches, in turn: each worker sees its disjoint share, together they
see every sample once, and the sequence of batches is the same whatever the number of workers. Nothing but these numbers
is moved or buffered, so the shuffle costs no more than reading rows at random from the node's shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import ray


def turns(samples: int, size: int) -> ray.data.Dataset:
    """Return the numbers of an epoch's batches as a dataset with a block for each.

    Ray Train splits it among its workers by itself: give it as `datasets={"turns": turns(...)}` and each worker's
    stream `ray.train.get_dataset_shard("turns")`.

    Args:
        samples: Samples of the role, `SubjectStream.n_trials`.
        size: Samples a batch.
    """
    batches = math.ceil(samples / size)
    # Items are blocks in memory already: an epoch runs no task for them, where `ray.data.range` would run one each.
    return ray.data.from_items([{"turn": number} for number in range(batches)], override_num_blocks=max(batches, 1))


def deal(samples: int, size: int, workers: int, equal: bool = False) -> list[ray.data.DataIterator]:
    """Return each worker's share of an epoch, to be given to its `SubjectStream`.

    All workers must iterate at the same time: an epoch starts when all have asked for it.

    Args:
        samples: Samples of the role.
        size: Samples a batch; workers must ask for batches of this size.
        workers: How many.
        equal: Give each the same number of batches, for workers that reduce gradients in step; up to `workers - 1`
            batches of the epoch are dropped then.
    """
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True  # else the order depends on which block is ready first
    with ray.data.DataContext.current(context):
        shares: list[ray.data.DataIterator] = turns(samples, size).streaming_split(workers, equal=equal)
    return shares


def dealt(share: ray.data.DataIterator) -> Iterator[int]:
    """Yield the numbers of one epoch's batches that are this worker's."""
    for row in share.iter_rows():
        yield int(row["turn"])
