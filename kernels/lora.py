"""Low-rank adapters (LoRA, arXiv 2106.09685) of several kinds in one batch: y = W x + B_i A_i x, i the row's own.

Off a card each adapter's rows are taken out and multiplied by that adapter alone, which is also the definition. On a
card the factors of all adapters are stacked and every row is multiplied by all of them, and what is not the row's
adapter is set to zero between the two products: two dense products of the same shapes whatever the batch holds, with
nothing looked at on the host, so a forward with adapters is captured in a CUDA graph like any other. That costs
2 * num_rows * (in_features + out_features) * (sum of ranks) operations; with a few adapters of rank 64 it is a few
percent of a layer's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Index = Tensor | slice


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapter's part in one linear layer. The scale (alpha / rank) is in `b` already."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]


class AdapterRows:
    """Which adapter each row of the batch under way has, for all layers of one model.

    Adapters are numbered from 0; -1 is none. On a card `numbers` is a buffer at a fixed address, off it the batch's
    rows are known by adapter.
    """

    def __init__(self, numbers: Tensor | None = None) -> None:
        """`numbers`: [max_rows] int32 on the card."""
        self.numbers = numbers
        self.members: list[tuple[int, Index]] = []  # (adapter, its rows), of those that have any

    def set(self, numbers: Sequence[int]) -> None:
        """Of a batch off a card: row i has the adapter `numbers[i]`."""
        found = sorted({number for number in numbers if number >= 0})
        if len(found) == 1 and len(set(numbers)) == 1:
            self.members = [(found[0], slice(None))]
            return
        of = torch.tensor(numbers)
        self.members = [(number, (of == number).nonzero().flatten()) for number in found]


class LoraLinear(nn.Module):
    """A linear layer, of whatever kind, with the adapters that have a part in it."""

    def __init__(self, base: nn.Module, factors: Mapping[int, Factors], num_adapters: int, rows: AdapterRows) -> None:
        """`factors` by the adapter's number."""
        super().__init__()
        self.base, self.rows = base, rows
        any_ = next(iter(factors.values()))
        rank = max(each.a.shape[0] for each in factors.values())
        a = any_.a.new_zeros(num_adapters, rank, any_.a.shape[1])
        b = any_.b.new_zeros(any_.b.shape[0], num_adapters, rank)
        for number, each in factors.items():
            a[number, : each.a.shape[0]], b[:, number, : each.b.shape[1]] = each.a, each.b
        self.register_buffer("a", a.flatten(0, 1), persistent=False)  # [num_adapters * rank, in_features]
        self.register_buffer("b", b.flatten(1, 2), persistent=False)  # [out_features, num_adapters * rank]
        owners = torch.arange(num_adapters, device=a.device, dtype=torch.int32).repeat_interleave(rank)
        self.register_buffer("owners", owners, persistent=False)  # [num_adapters * rank]
        self.rank, self.numbers = rank, frozenset(factors)

    a: Tensor
    b: Tensor
    owners: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features], all rows of the batch in order -> [..., out_features]"""
        out: Tensor = self.base(x)
        rows, flat = x.flatten(0, -2), out.flatten(0, -2)
        if self.rows.numbers is None:
            added = add_lora_reference(flat, rows, self.a, self.b, self.rank, self.numbers, self.rows.members)
        else:
            added = add_lora(flat, rows, self.a, self.b, self.owners, self.rows.numbers[: rows.shape[0]])
        return added.view(out.shape)


def add_lora(out: Tensor, x: Tensor, a: Tensor, b: Tensor, owners: Tensor, numbers: Tensor) -> Tensor:
    """`out` plus each row's own adapter's B A x.

    Args:
        out: [num_rows, out_features].
        x: [num_rows, in_features].
        a, b: [num_adapters * rank, in_features], [out_features, num_adapters * rank], stacked by adapter.
        owners: [num_adapters * rank] int32, whose each row of `a` is.
        numbers: [num_rows] int32, each row's adapter, or -1.
    """
    low = torch.nn.functional.linear(x, a)
    # Chosen, not multiplied by 0: what is not this row's may be no finite number.
    low = torch.where(numbers[:, None] == owners[None, :], low, 0.0)
    return torch.addmm(out, low, b.t())


def add_lora_reference(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, rank: int, there: frozenset[int], members: list[tuple[int, Index]]
) -> Tensor:
    """The same, adapter by adapter: `members` are (adapter, its rows); those not `there` have no part in the layer."""
    for number, index in members:
        if number not in there:
            continue
        own = slice(number * rank, (number + 1) * rank)
        delta = x[index] @ a[own].t() @ b[:, own].t()
        if isinstance(index, slice):
            out = out + delta
        else:
            out = out.index_add(0, index, delta)
    return out


def merged(parts: Sequence[Factors | None], sizes: Sequence[int]) -> Factors:
    """One adapter's factors of a product that several layers of one input were merged into.

    `parts` are in the product's order, None for those without; `sizes` are their out_features. At least one is there.
    """
    there = [part for part in parts if part is not None]
    a = torch.cat([part.a for part in there])
    b = a.new_zeros(sum(sizes), a.shape[0])
    row = column = 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            rank = part.b.shape[1]
            b[row : row + size, column : column + rank] = part.b
            column += rank
        row += size
    return Factors(a, b)
