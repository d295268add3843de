"""Predicted encodings on a card: the mean of several by the fused copy; a text under the view that it was seen in."""

from __future__ import annotations

import random

import pytest
import torch
from correction_checks import Reader, largest_difference, words
from engine_harness import make_engine

from laban.kernels.mixed_copy import copy_mixed, copy_mixed_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("num_sources", [1, 4])
def test_the_mean_is_the_references(num_sources: int) -> None:
    generator = torch.Generator("cuda").manual_seed(num_sources)
    pools = [torch.randn(9, 1024, 2, 64, device="cuda", generator=generator) for _ in range(2)]
    expected = [pool.clone() for pool in pools]
    slots = torch.randperm(1024, device="cuda", generator=generator)[: 100 * (num_sources + 1)].view(-1, 100)
    offsets, weights = [0, -37, 4000, 11][:num_sources], [1.0 / num_sources] * num_sources
    inv_freq = 1e4 ** -(torch.arange(0, 64, 2, device="cuda") / 64)
    copy_mixed(*pools, list(slots[1:]), offsets, weights, slots[0], inv_freq)
    copy_mixed_reference(*expected, list(slots[1:]), offsets, weights, slots[0], inv_freq)
    for found, wanted in zip(pools, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_the_same_text_under_the_same_view_is_the_dense_one(fused: bool) -> None:
    rng, root = random.Random(1), (1, 2, 3)
    before, text = words(rng, 12), words(rng, 40)
    reader = Reader(make_engine(device="cuda", fused=fused))
    first, again = (reader.read((root, 0.0), (before, 0.0), (text, t))[-1] for t in (1e-9, 2e-9))
    assert reader.mix(first) is None
    assert reader.mix(again) is not None
    assert largest_difference(reader, first, reader, again) == 0.0
