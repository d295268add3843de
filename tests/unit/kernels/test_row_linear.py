"""Linear layers of one row, in Triton's interpreter where there is no card."""

from __future__ import annotations

import pytest
import torch
from engine_reference import random_model
from torch import nn

from laban.kernels.merged_linear import merge_linears

pytest.importorskip("triton")
from laban.kernels.row_linear import RowLinear, row_linear, use_row_linears


@pytest.mark.parametrize(("num_in", "num_out"), [(16, 5), (1024, 8), (1536, 33), (576, 100)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_one_row_is_what_the_library_makes_of_it(num_in: int, num_out: int, has_bias: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 2e-2)):
        x, weight = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((num_in,), (num_out, num_in)))
        bias = torch.randn(num_out, device=device, dtype=dtype) if has_bias else None
        expected = weight.double() @ x.double() + (0 if bias is None else bias.double())
        torch.testing.assert_close(row_linear(x, weight, bias).double(), expected, atol=tolerance, rtol=4e-3)


def test_modules_of_16_bits_are_swapped_and_share_their_weights() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 4).half(), "b": nn.ModuleList([nn.Linear(4, 2, bias=False).half()])})
    weight, x = model["a"].weight, torch.randn(3, 8)
    expected = model["a"].float()(x)
    model["a"].half()
    assert use_row_linears(model) == 2
    assert isinstance(model["b"][0], RowLinear)
    assert model["a"].weight is weight
    torch.testing.assert_close(model["a"](x.half()).float(), expected, atol=2e-2, rtol=0)
    attention = random_model("llama").half().model.layers[0].self_attn
    merge_linears(attention)
    use_row_linears(attention)
    assert isinstance(attention.q_proj.product.linear, RowLinear)
    assert attention.q_proj.product is attention.v_proj.product
    assert use_row_linears(nn.ModuleList([nn.Linear(4, 2)])) == 0, "float32 is the library's"
