"""The pictures that the page of a board shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.board.gallery import Item
from bench.core.storage import Folder
from bench.data import shard_set
from bench.data.shard_set import ShardSet
from bench.data.shards.pictures import png_of, read_images
from bench.scoring.entries import Entry

GALLERY_IMAGES = 8


def gallery(entries: Mapping[str, Entry], data: ShardSet, tested: Mapping[int, Sequence[int]]) -> list[Item]:
    """Return the pictures the page shows: truth beside the reconstructions of every row, first subject and last.

    Chance has no pictures of its own: the winner's, paired with wrong truths, are left out.

    Args:
        entries: Entries by record id.
        data: The stimuli.
        tested: Test stimuli by subject.
    """
    items = []
    for subject in sorted({min(tested), max(tested)}):
        mine = tested[subject]
        shown = [mine[round(i)] for i in np.linspace(0, len(mine) - 1, min(GALLERY_IMAGES, len(mine)))]
        truth, captions = shard_set.pictures(data, shown), shard_set.captions(data, shown)
        seen = {key: each for key, each in entries.items() if subject in each.images and not each.wrong_pairs}
        made = {key: _first_pictures(each.images[subject].folder) for key, each in seen.items()}
        for stimulus in shown:
            images = {key: png_of(pictures[stimulus]) for key, pictures in made.items()}
            true = png_of(truth[stimulus].transpose(2, 0, 1))
            caption = next(iter(captions[stimulus]), "")
            items.append(Item(subject, int(stimulus), caption, true, images))
    return items


def _first_pictures(folder: Folder) -> dict[int, np.ndarray]:
    """Return the first picture of each stimulus, `(3, H, W)` uint8."""
    table, values = read_images(folder)
    first: dict[int, np.ndarray] = {}
    for row, stimulus in enumerate(table["stimulus"].to_pylist()):
        first.setdefault(stimulus, values[row])
    return first
