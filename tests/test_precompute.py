"""The cache of what encoders precompute: fits that miss at once on one machine compute once."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

from bench.core.storage import Folder
from bench.fitting.precompute import cache_key, precomputed


class Slow:
    """An encoder that notes when its `precompute` is called, and takes its time."""

    precompute_options = ("alpha",)

    def __init__(self) -> None:
        self.calls = 0

    def precompute(self, data, heads):
        self.calls += 1
        time.sleep(0.3)
        return {"gram": np.eye(3)}


def plan_of(**options) -> SimpleNamespace:
    same = dict.fromkeys(("subjects", "shards", "sessions", "split", "normalise", "averaging", "seed", "control"))
    return SimpleNamespace(**same, encoder="slow", options={"alpha": 1.0, "beta": 0, **options}, heads={})


def test_fits_that_miss_at_once_wait_for_the_first(tmp_path):
    encoder, runs = Slow(), Folder.at(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: precomputed(encoder, plan_of(beta=number), {}, [], runs), range(4)))
    assert encoder.calls == 1
    for arrays in made:
        np.testing.assert_array_equal(arrays["gram"], np.eye(3))
    assert list((runs / "precompute").files()) == [f"{cache_key(encoder, plan_of())}.npz"]
    assert precomputed(encoder, plan_of(alpha=2.0), {}, [], runs).keys() == {"gram"} and encoder.calls == 2
