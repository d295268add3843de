"""Packed linear layers give what the plain ones give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from laban.kernels.packed_linear import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch does not pack weights")


@pytest.mark.parametrize("rows", [1, 3, 16, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_is_plain(rows: int, bias: bool) -> None:
    linear, x = nn.Linear(100, 37, bias=bias), torch.randn(2, rows, 100)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


def test_every_linear_of_a_model_is_replaced_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), nn.ReLU())
    x = torch.randn(5, 8)
    with torch.inference_mode():
        before = model(x)
        assert pack_linears(model) == 2
        assert pack_linears(model) == 0
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
