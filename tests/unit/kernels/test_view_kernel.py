"""The fused kernel, in Triton's interpreter where there is no card, against the row-by-row definition."""

from __future__ import annotations

import random

import pytest
import torch
from view_checks import assert_close, random_batch, random_tensors, run_kernel

from laban.kernels.view_plan import PlanShape

pytest.importorskip("triton")
from laban.kernels.view_tiles import Tile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it on the card"),
]
SMALL = {"max_turned": 512, "max_items": 256, "max_tokens": 64, "max_partials": 1024, "size": 1 << 14}


@pytest.mark.parametrize(
    ("group", "kv_heads", "head_dim", "rotary_dim", "window"),
    [(1, 1, 16, 16, None), (3, 1, 16, 16, None), (4, 2, 16, 8, None), (2, 1, 24, 24, None), (2, 1, 16, 16, 20)],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_kernel_computes_the_definition(
    group: int, kv_heads: int, head_dim: int, rotary_dim: int, window: int | None, seed: int
) -> None:
    draw = random.Random(seed)
    batch = random_batch(
        draw, window=window, counts=(1, 1, 6), lengths=(1, 17, 64, 80), num_messages=3, max_reads=3,
        same_readers=seed == 1, num_chunks=3 + seed,
    )  # fmt: skip
    tile = Tile(16, 32, 4, 1, 1)
    shape = PlanShape(16 // group, 32, kv_heads, 6, 16, window, min_shared_tokens=16, **SMALL)
    x = random_tensors(
        batch, seed, group=group, kv_heads=kv_heads, head_dim=head_dim, rotary_dim=rotary_dim, dtype=torch.float32
    )
    assert_close(run_kernel(batch, x, shape, tile), x)
