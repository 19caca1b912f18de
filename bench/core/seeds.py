"""Seeds by name: all random numbers of a picture come from one seed, which names stimulus, repeat and sample alone."""

from __future__ import annotations

import hashlib


def picture_seed(stimulus: int, repeat: int = 0, sample: int = 0, base: int = 0) -> int:
    """Return the seed of a picture, in `[0, 2**62)`.

    The same stimulus, repeat and sample get the same seed in every recipe and subject, so that systems are compared
    under the same noise; neighbouring stimuli get unrelated ones.

    Args:
        stimulus: 0-based stimulus.
        repeat: 0-based repeat; -1, the mean over repeats, has the seed of the first.
        sample: 0-based sample of that repeat, below 1000.
        base: Seed of the whole run.
    """
    name = f"{base}/{stimulus}/{max(repeat, 0) * 1000 + sample}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 2
