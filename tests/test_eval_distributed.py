"""Every formula over two real processes: what they hold together is what one process holds alone."""

import multiprocessing
import socket

import pytest
import torch
from eval_fakes import FORMULAS, sides
from torch import distributed

from eval.training import PerImageMetric

FIRST = 5
"""Images of the first process; the other has the rest."""


def work(rank: int, address: str, found) -> None:
    """One of two processes: takes its part in batches, synchronises, and tells every formula's values."""
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mine = slice(0, FIRST) if rank == 0 else slice(FIRST, None)
    for name, formula in FORMULAS.items():
        metric = PerImageMetric(formula)
        x, y = (side[mine] for side in sides(formula))
        for batch in zip(x.split(2), y.split(2), strict=True):
            metric.update(*batch)
        found.put((rank, name, metric.per_image().tolist(), float(metric.compute())))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def synchronised() -> dict[tuple[int, str], tuple[list[float], float]]:
    """What each process says of each formula after the two have met."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [context.Process(target=work, args=(rank, address, found)) for rank in range(2)]
    for worker in workers:
        worker.start()
    told = [found.get(timeout=240) for _ in range(2 * len(FORMULAS))]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return {(rank, name): (values, mean) for rank, name, values, mean in told}


@pytest.mark.parametrize("name", FORMULAS)
def test_two_processes_hold_what_one_holds(synchronised, name):
    expected = FORMULAS[name](*sides(FORMULAS[name]))
    for rank in range(2):
        values, mean = synchronised[rank, name]
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=1e-9)
        assert mean == pytest.approx(float(expected.mean()), abs=1e-9)
    assert expected.std() > 0
