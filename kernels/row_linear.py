"""Linear layers for one row, on a card: a decoded token reads every weight once and does two operations with each.

A library's matrix product takes that for a small product of a large one: it splits the sum and adds the parts in
another launch. Here each program sums whole rows of the weight. Floor: out_features * in_features * itemsize bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from laban.kernels.launching import following
from laban.kernels.merged_linear import ProductPart

BLOCK_OUT, BLOCK_IN, NUM_WARPS = 8, 1024, 4


class RowLinear(nn.Module):
    """`nn.Linear`, with a kernel of its own for one row."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]"""
        if x.numel() != self.in_features or not x.is_cuda:
            return functional.linear(x, self.weight, self.bias)
        return row_linear(x.reshape(-1), self.weight, self.bias).view(*x.shape[:-1], self.out_features)


def use_row_linears(module: nn.Module) -> int:
    """Replaces every plain `nn.Linear` of 16 bits under `module`. Returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and child.weight.dtype.itemsize == 2 and child.weight.is_contiguous():
            setattr(module, name, RowLinear(child))
            count += 1
        elif isinstance(child, ProductPart):
            if type(child.product.linear) is nn.Linear:  # one product for several parts
                child.product.linear = RowLinear(child.product.linear)
        else:
            count += use_row_linears(child)
    return count


def row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [in_features], weight [out_features, in_features] dense -> [out_features], summed in float32."""
    num_out, num_in = weight.shape
    out = torch.empty(num_out, dtype=x.dtype, device=x.device)
    _row_linear[(triton.cdiv(num_out, BLOCK_OUT),)](
        x, weight, weight if bias is None else bias, out, num_out,
        NUM_IN=num_in, HAS_BIAS=bias is not None, BLOCK_OUT=BLOCK_OUT, BLOCK_IN=BLOCK_IN, num_warps=NUM_WARPS,
        **following(x.device),
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _row_linear(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor, num_out: tl.tensor, NUM_IN: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, EARLY: tl.constexpr,
) -> None:  # fmt: skip
    rows = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    columns = tl.arange(0, BLOCK_IN)
    there = rows < num_out
    starts = weight + rows.to(tl.int64)[:, None] * NUM_IN
    # Weights are not read again before everything else of the iteration: keys and values may stay in the cache.
    mask = there[:, None] & (columns < NUM_IN)[None, :]
    part = tl.load(starts + columns[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
    if EARLY:  # the first weights are on their way by the time that there is something to multiply them with
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    acc = part.to(tl.float32) * tl.load(x + columns, mask=columns < NUM_IN, other=0.0).to(tl.float32)[None, :]
    for first in range(BLOCK_IN, NUM_IN, BLOCK_IN):
        columns = first + tl.arange(0, BLOCK_IN)
        mask = there[:, None] & (columns < NUM_IN)[None, :]
        part = tl.load(starts + columns[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        acc += part.to(tl.float32) * tl.load(x + columns, mask=columns < NUM_IN, other=0.0).to(tl.float32)[None, :]
    total = tl.sum(acc, 1)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=there, other=0.0).to(tl.float32)
    tl.store(out + rows, total.to(out.dtype.element_ty), mask=there)
