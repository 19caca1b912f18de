"""Every metric class over two real processes: what they hold together is what one process holds alone."""

import multiprocessing
import socket

import pytest
import torch
from torch import Tensor, distributed

from eval.metrics._base import PerImageMetric
from eval.metrics.brain_correlation import BrainCorrelation, brain_correlation
from eval.metrics.correlation_distance import CorrelationDistance, correlation_distance
from eval.metrics.identification import TwoWayIdentification, two_way_identification
from eval.metrics.n_way import NWay, NWayTopK, n_way_top_k
from eval.metrics.perceptual_distance import PerceptualDistance, perceptual_distance
from eval.metrics.pixcorr import PixCorr, pixcorr
from eval.metrics.retrieval import Retrieval, TopOneRetrieval, top_1_retrieval
from eval.metrics.ssim import SSIM, ssim

N, FIRST = 9, 5
"""Images in all, and those of the first process: unequal parts."""
CLASSES = {
    "pixcorr": (PixCorr, pixcorr),
    "ssim": (SSIM, ssim),
    "identification": (TwoWayIdentification, two_way_identification),
    "distance": (CorrelationDistance, correlation_distance),
    "perceptual": (PerceptualDistance, perceptual_distance),
    "brain": (BrainCorrelation, brain_correlation),
    "n-way": (lambda: NWayTopK(NWay(4)), lambda x, y: n_way_top_k(x, y, NWay(4))),
    "retrieval": (
        lambda: TopOneRetrieval(Retrieval(pool=5)),
        lambda x, y: top_1_retrieval(x, y, Retrieval(pool=5)),
    ),
}


def pairs(name: str) -> tuple[Tensor, Tensor]:
    """Both sides of all images: pictures, or rows of numbers."""
    shape = (N, 3, 16, 16) if name in ("pixcorr", "ssim") else (N, 30)
    x, y = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 0.9 * x + 0.1 * y, y


def work(rank: int, address: str, found) -> None:
    """One of two processes: takes its part in batches, synchronises, and tells every class' values."""
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mine = slice(0, FIRST) if rank == 0 else slice(FIRST, N)
    for name, (build, _) in CLASSES.items():
        metric: PerImageMetric = build()
        x, y = (side[mine] for side in pairs(name))
        for batch in zip(x.split(2), y.split(2), strict=True):
            metric.update(*batch)
        found.put((rank, name, metric.per_image().tolist(), float(metric.compute())))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def synchronised() -> dict[tuple[int, str], tuple[list[float], float]]:
    """What each process says of each class after the two have met."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [context.Process(target=work, args=(rank, address, found)) for rank in range(2)]
    for worker in workers:
        worker.start()
    told = [found.get(timeout=240) for _ in range(2 * len(CLASSES))]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return {(rank, name): (values, mean) for rank, name, values, mean in told}


@pytest.mark.parametrize("name", CLASSES)
def test_two_processes_hold_what_one_holds(synchronised, name):
    expected = CLASSES[name][1](*pairs(name))
    for rank in range(2):
        values, mean = synchronised[rank, name]
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=1e-9)
        assert mean == pytest.approx(float(expected.mean()), abs=1e-9)
    assert expected.std() > 0
