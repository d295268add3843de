"""Predicted encodings on a card: the mean of several by the fused copy; a text under the view that it was seen in."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from correction_checks import Reader, largest_difference, words
from engine_harness import make_engine
from fused_checks import mixed_copies

from laban.kernels.mixed_copy import Rotation, copy_mixed, copy_mixed_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("lengths", [[(100, 1)], [(100, 4)], [(64, 2), (1, 1), (333, 3)]])
def test_the_means_are_the_references(lengths: list[tuple[int, int]]) -> None:
    generator = torch.Generator("cuda").manual_seed(len(lengths))
    pools = [torch.randn(9, 1024, 2, 64, device="cuda", generator=generator) for _ in range(2)]
    expected = [pool.clone() for pool in pools]
    copies = mixed_copies(lengths, 16, 64, np.random.default_rng(len(lengths)))
    inv_freq = 1e4 ** -(np.arange(0, 64, 2) / 64)
    rotations = [Rotation(torch.arange(9, dtype=torch.int32, device="cuda"), inv_freq)]
    copy_mixed(*pools, copies, rotations, 16)
    copy_mixed_reference(*expected, copies, rotations, 16)
    for found, wanted in zip(pools, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_the_host_waits_for_nothing() -> None:
    """Copies are packed, sent and launched while the card is busy."""
    pools = [torch.randn(4, 1024, 2, 64, device="cuda") for _ in range(2)]
    copies = mixed_copies([(100, 4), (50, 1)], 16, 64, np.random.default_rng(0))
    rotations = [Rotation(torch.arange(4, dtype=torch.int32, device="cuda"), 1e4 ** -(np.arange(0, 64, 2) / 64))]
    copy_mixed(*pools, copies, rotations, 16)  # compiles
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    copy_mixed(*pools, copies, rotations, 16)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("fused", [False, True])
def test_the_same_text_under_the_same_view_is_the_dense_one(fused: bool) -> None:
    rng, root = random.Random(1), (1, 2, 3)
    before, text = words(rng, 12), words(rng, 40)
    reader = Reader(make_engine(device="cuda", fused=fused))
    first, again = (reader.read((root, 0.0), (before, 0.0), (text, t))[-1] for t in (1e-9, 2e-9))
    assert reader.mix(first) is None
    assert reader.mix(again) is not None
    assert largest_difference(reader, first, reader, again) == 0.0
