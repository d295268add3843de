"""Copies that are a mean of several encodings: the fused path and the plain one against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fused_checks import mixed_copies
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.kernels import mixed_copy
from laban.kernels.fused_ops import rotate_reference
from laban.kernels.mixed_copy import Rotation, copy_mixed, copy_mixed_reference, launch_mixed, pack, slots_of

PAGE_SIZE = 4


def rotated(keys: torch.Tensor, offset: int, inv_freq: torch.Tensor) -> torch.Tensor:
    angles = torch.full((len(keys), 1), offset).double() * inv_freq
    return rotate_reference(keys.double(), angles.cos(), angles.sin())


@pytest.mark.parametrize("path", ["compiled", "fused", "plain"])
@pytest.mark.parametrize(
    ("lengths", "layers", "dim", "rotary"),
    [([(7, 1)], 2, 16, 16), ([(8, 2), (3, 1)], 9, 16, 8), ([(5, 4), (1, 2), (9, 3)], 3, 24, 24)],
)
def test_the_means_are_the_references(
    monkeypatch: pytest.MonkeyPatch, path: str, lengths: list[tuple[int, int]], layers: int, dim: int, rotary: int
) -> None:
    generator = torch.Generator().manual_seed(layers)
    pools = [torch.randn(layers, 64, 2, dim, generator=generator) for _ in range(2)]
    before, expected = ([pool.clone() for pool in pools] for _ in range(2))
    copies = mixed_copies(lengths, PAGE_SIZE, 64 // PAGE_SIZE, np.random.default_rng(layers))
    frequencies = [1e4 ** -(np.arange(0, rotary, 2) / rotary), 1e2 ** -(np.arange(0, rotary, 2) / rotary)]
    alike = torch.arange(layers, dtype=torch.int32) % 2
    rotations = [Rotation((alike == i).nonzero().flatten().int(), each) for i, each in enumerate(frequencies)]
    if path == "fused":  # Triton's kernel, in its interpreter
        packed = pack(copies, frequencies, PAGE_SIZE)
        for number, rotation in enumerate(rotations):
            launch_mixed(*pools, packed, number, rotation.layers)
    else:
        assert mixed_copy.mix_rows is not None
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        if path == "plain":
            monkeypatch.setattr(mixed_copy, "mix_rows", None)
        copy_mixed(*pools, copies, rotations, PAGE_SIZE)
    copy_mixed_reference(*expected, copies, rotations, PAGE_SIZE)
    for found, wanted in zip(pools, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for copy in copies:
        if len(copy.parts) == 1:
            target, source = (slots_of(each, copy.num_tokens, PAGE_SIZE) for each in (copy.pages, copy.parts[0].pages))
            assert torch.equal(pools[1][:, target], before[1][:, source])


def test_what_is_not_moved_is_copied_bit_by_bit() -> None:
    pools = [torch.randn(2, 64, 3, 8) for _ in range(2)]
    (copy,) = mixed_copies([(10, 1)], PAGE_SIZE, 16, np.random.default_rng(0))
    copy = mixed_copy.MixedCopy(copy.pages, 10, (mixed_copy.Part(copy.parts[0].pages, 0, 1.0),))
    frequencies = 1e4 ** -(np.arange(0, 8, 2) / 8)
    launch_mixed(*pools, pack([copy], [frequencies], PAGE_SIZE), 0, torch.arange(2, dtype=torch.int32))
    target, source = (slots_of(each, 10, PAGE_SIZE) for each in (copy.pages, copy.parts[0].pages))
    assert all(torch.equal(pool[:, target], pool[:, source]) for pool in pools)


@settings(max_examples=30, deadline=None)
@given(st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_turning_twice_is_turning_once(a: int, b: int) -> None:
    keys, inv_freq = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(a)), 1e4 ** -(torch.arange(8) / 8)
    keys = keys.double()
    twice = rotated(rotated(keys, a, inv_freq), b, inv_freq)
    torch.testing.assert_close(twice, rotated(keys, a + b, inv_freq), atol=1e-9, rtol=0)
