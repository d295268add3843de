"""The fused kernel on a card against the row-by-row definition in float64: types, head sizes, windows, ragged views."""

from __future__ import annotations

import random

import pytest
import torch
from view_checks import assert_close, random_batch, random_tensors, run_kernel

from laban.kernels.view_plan import PlanShape

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
pytest.importorskip("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(
    ("group", "kv_heads", "window", "num_rows"), [(1, 2, None, 16), (3, 2, None, 64), (4, 2, 50, 200)]
)
def test_the_kernel_computes_the_definition(
    dtype: torch.dtype, head_dim: int, group: int, kv_heads: int, window: int | None, num_rows: int
) -> None:
    from laban.kernels.view_tiles import pick_tile

    for seed in range(2):
        draw = random.Random(seed)
        batch = random_batch(draw, window=window, same_readers=seed == 1, lengths=(1, 5, 63, 64, 90, 700))
        tile = pick_tile(num_rows, head_dim, dtype)
        shape = PlanShape(tile.block_m // group, tile.block_n, kv_heads, draw.choice([4, 264]), 16, window)
        rotary_dim = head_dim if seed == 0 else head_dim // 2
        x = random_tensors(
            batch, seed, group=group, kv_heads=kv_heads, head_dim=head_dim, rotary_dim=rotary_dim, dtype=dtype,
            device="cuda",
        )  # fmt: skip
        assert_close(run_kernel(batch, x, shape, tile), x)
