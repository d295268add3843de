"""Adapters in one batch: the stacked products of a card and the definition, adapter by adapter."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from laban.kernels.lora import AdapterRows, Factors, LoraLinear, add_lora, merged


def factors(rank: int, size_in: int, size_out: int) -> Factors:
    return Factors(torch.randn(rank, size_in), torch.randn(size_out, rank))


def expected(base: nn.Linear, own: dict[int, Factors], x: Tensor, numbers: list[int]) -> Tensor:
    rows = []
    for row, number in zip(x, numbers, strict=True):
        out = base.weight.double() @ row.double() + base.bias.double()
        if number in own:
            out = out + own[number].b.double() @ (own[number].a.double() @ row.double())
        rows.append(out)
    return torch.stack(rows).float()


@torch.no_grad()
def test_rows_get_their_own_adapters_product() -> None:
    draw = random.Random()
    for _ in range(40):
        size_in, size_out, num_adapters = draw.randint(1, 40), draw.randint(1, 40), draw.randint(1, 5)
        there = draw.sample(range(num_adapters), draw.randint(1, num_adapters))
        own = {number: factors(draw.randint(1, 9), size_in, size_out) for number in there}
        num_rows = draw.randint(1, 20)
        numbers = [draw.randint(-1, num_adapters - 1) for _ in range(num_rows)]
        base, x = nn.Linear(size_in, size_out), torch.randn(num_rows, size_in)
        wanted = expected(base, own, x, numbers)
        rows = AdapterRows()
        rows.set(numbers)
        layer = LoraLinear(base, own, num_adapters, rows)
        torch.testing.assert_close(layer(x[None])[0], wanted, atol=1e-4, rtol=1e-4)
        # As on a card: a buffer longer than the batch, whatever is behind it.
        layer.rows = AdapterRows(torch.tensor([*numbers, 0, 3], dtype=torch.int32))
        torch.testing.assert_close(layer(x[None])[0], wanted, atol=1e-4, rtol=1e-4)


def test_what_is_not_the_rows_own_may_be_no_number() -> None:
    a, b = torch.randn(4, 8), torch.randn(6, 4)
    a[2:] = torch.inf
    owners = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    found = add_lora(torch.zeros(2, 6), torch.randn(2, 8), a, b, owners, torch.tensor([0, -1], dtype=torch.int32))
    assert found.isfinite().all()
    assert (found[1] == 0).all()


def test_a_merged_product_gets_each_parts_own() -> None:
    first, third = factors(3, 8, 5), factors(2, 8, 7)
    both, x = merged([first, None, third], [5, 6, 7]), torch.randn(8)
    parts = torch.cat([first.b @ (first.a @ x), torch.zeros(6), third.b @ (third.a @ x)])
    torch.testing.assert_close(both.b @ (both.a @ x), parts, atol=1e-4, rtol=1e-4)
