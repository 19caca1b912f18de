"""Seeds by name: every random number of a picture comes from a seed that only names the stimulus and the sample."""

from __future__ import annotations

import hashlib


def seed_of(stimulus: int, sample: int, base_seed: int) -> int:
    """Return the seed of a picture, in `[0, 2**62)`.

    The same stimulus and sample get the same seed in every recipe and subject, so that systems are compared under the
    same noise; neighbouring stimuli get unrelated ones.

    Args:
        stimulus: 0-based stimulus.
        sample: 0-based sample of that stimulus.
        base_seed: Seed of the whole run.
    """
    name = f"{base_seed}/{stimulus}/{sample}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 2
