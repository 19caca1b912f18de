"""What every encoder stands on: blocks assembled into heads, and a head's own voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.base import Block, Head, LocalClients, Runtime, assemble

Z, C = Head("z", (2, 3)), Head("c", (4,))


def test_blocks_in_any_order_make_whole_heads():
    z, c = torch.randn(5, 6), torch.randn(5, 4)
    blocks = [
        {"z": Block(4, z[:, 4:])},
        {"c": Block(0, c[:, :1]), "z": Block(0, z[:, :4])},
        {"c": Block(1, c[:, 1:])},
    ]
    whole = assemble(blocks, [Z, C], 5)
    assert torch.equal(whole["z"], z.reshape(5, 2, 3))
    assert torch.equal(whole["c"], c)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms())
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_same(widths, random):
    size = sum(widths)
    values = torch.arange(3 * size, dtype=torch.float32).reshape(3, size)
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
    blocks = [{"z": Block(int(s), values[:, s : s + w])} for s, w in zip(starts, widths, strict=True)]
    random.shuffle(blocks)
    assert torch.equal(assemble(blocks, [Head("z", (size,))], 3)["z"], values)


def test_blocks_become_float32_without_gradients():
    values = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    whole = assemble([{"c": Block(0, values)}], [C], 2)["c"]
    assert whole.dtype == torch.float32
    assert not whole.requires_grad


def test_no_rows_and_no_heads():
    assert assemble([{"c": Block(0, torch.empty(0, 4))}], [C], 0)["c"].shape == (0, 4)
    assert assemble([], [], 3) == {}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"q": Block(0, torch.ones(2, 4))}], r"block of head 'q'; the fit has heads \['c'\]"),
        ([{"c": Block(0, torch.ones(2, 3))}], r"head 'c': 1 of 4 targets not given exactly once"),
        ([], r"head 'c': 4 of 4 targets not given exactly once"),
        ([{"c": Block(0, torch.ones(2, 4))}, {"c": Block(1, torch.ones(2, 2))}], r"head 'c': 2 of 4 targets not given"),
        ([{"c": Block(0, torch.ones(3, 4))}], r"head 'c': block of shape \(3, 4\) at 0 does not fit \(2, 4\)"),
        ([{"c": Block(2, torch.ones(2, 3))}], r"head 'c': block of shape \(2, 3\) at 2 does not fit \(2, 4\)"),
        ([{"c": Block(-2, torch.ones(2, 2))}], r"head 'c': block of shape \(2, 2\) at -2 does not fit \(2, 4\)"),
    ],
)
def test_wrong_blocks_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        assemble(blocks, [C], 2)


def test_size_is_the_number_of_scalars():
    assert (Z.size, C.size, Head("s", ()).size) == (6, 4, 1)


def test_a_head_selects_its_columns_of_each_subject():
    voxels = torch.arange(12.0).reshape(3, 4)
    head = Head("z", (1,), columns={1: np.array([3, 1]), 2: np.array([0])})
    assert torch.equal(head.select(voxels, 1), voxels[:, [3, 1]])
    assert torch.equal(head.select(voxels, 2), voxels[:, :1])
    assert Head("z", (1,)).select(voxels, 7) is voxels


def test_a_runtime_alone_is_one_worker_on_the_cpu():
    runtime = Runtime()
    value = torch.ones(2)
    assert runtime.device == torch.device("cpu")
    assert runtime.reduce(value) is value
    assert runtime.exchange({"a": value})["a"] is value
    assert runtime.report(0, {"validation_correlation": 0.0}) is None
    assert LocalClients().map(lambda subject: subject * 2, [3, 1]) == [6, 2]
