"""Copies that are a mean of several encodings: the fused path and the plain one against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.kernels import mixed_copy
from laban.kernels.fused_ops import rotate_reference
from laban.kernels.mixed_copy import copy_mixed, copy_mixed_reference, launch_mixed
from laban.kernels.rotated_copy import copy_rotated


def rotated(keys: torch.Tensor, offset: int, inv_freq: torch.Tensor) -> torch.Tensor:
    angles = torch.full((len(keys), 1), offset).double() * inv_freq
    return rotate_reference(keys.double(), angles.cos(), angles.sin())


@pytest.mark.parametrize("path", ["compiled", "fused", "plain"])
@pytest.mark.parametrize(("num_sources", "layers", "dim", "rotary"), [(1, 2, 16, 16), (2, 9, 16, 8), (4, 3, 24, 24)])
def test_the_mean_is_the_references(
    monkeypatch: pytest.MonkeyPatch, path: str, num_sources: int, layers: int, dim: int, rotary: int
) -> None:
    if path == "compiled":
        assert mixed_copy.mix_rows is not None
    elif path == "plain":
        monkeypatch.setattr(mixed_copy, "mix_rows", None)
    else:  # Triton's kernels, in its interpreter
        monkeypatch.setattr(mixed_copy, "copy_rotated_reference", copy_rotated)
        monkeypatch.setattr(
            mixed_copy, "_mix_in_threads", lambda k, v, rest: launch_mixed(k, v, *map(torch.from_numpy, rest))
        )
    generator = torch.Generator().manual_seed(num_sources)
    pools = [torch.randn(layers, 64, 2, dim, generator=generator) for _ in range(2)]
    expected = [pool.clone() for pool in pools]
    slots = torch.randperm(64, generator=generator)[: 7 * (num_sources + 1)].view(-1, 7)
    offsets = [0, -37, 4000, 11][:num_sources]
    weights = torch.rand(num_sources, generator=generator).softmax(0).tolist()
    inv_freq = 1e4 ** -(torch.arange(0, rotary, 2) / rotary)
    copy_mixed(*pools, list(slots[1:]), offsets, weights, slots[0], inv_freq)
    copy_mixed_reference(*expected, list(slots[1:]), offsets, weights, slots[0], inv_freq)
    for found, wanted in zip(pools, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    if num_sources == 1:
        assert torch.equal(pools[1][:, slots[0]], pools[1][:, slots[1]])


@settings(max_examples=30, deadline=None)
@given(st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_turning_twice_is_turning_once(a: int, b: int) -> None:
    keys, inv_freq = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(a)), 1e4 ** -(torch.arange(8) / 8)
    keys = keys.double()
    twice = rotated(rotated(keys, a, inv_freq), b, inv_freq)
    torch.testing.assert_close(twice, rotated(keys, a + b, inv_freq), atol=1e-9, rtol=0)
