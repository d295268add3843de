"""Checks of copies between tiers, for any device: bitwise, with everything besides the target poisoned."""

from __future__ import annotations

import torch
from torch import Tensor

from laban.kernels.tier_copy import copy_units, copy_units_reference

POISON = 0x55


def random_bytes(*shape: int, dtype: torch.dtype, device: str, pinned: bool = False) -> Tensor:
    """Every bit pattern, NaNs too."""
    values = torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8)
    return (values.pin_memory() if pinned else values.to(device)).view(dtype)


def poisoned(*shape: int, dtype: torch.dtype, device: str, pinned: bool = False) -> Tensor:
    values = torch.full((*shape[:-1], shape[-1] * dtype.itemsize), POISON, dtype=torch.uint8)
    return (values.pin_memory() if pinned else values.to(device)).view(dtype)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8))


def random_units(num_units: int, max_tokens: int, source_slots: int, target_slots: int) -> Tensor:
    """[num_units, 3]; targets apart from each other, sources anywhere."""
    lengths = torch.randint(1, max_tokens + 1, (num_units,))
    starts = torch.randperm(target_slots // max_tokens)[:num_units] * max_tokens
    sources = (torch.rand(num_units) * (source_slots - lengths + 1)).long()
    return torch.stack([sources, starts, lengths], dim=1).int()


def check_copy_units(
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    device: str,
    *,
    layers: range,
    num_units: int = 5,
    max_tokens: int = 7,
    num_programs: int = 3,
    loads: bool = True,
) -> None:
    """`loads` from pinned memory to a card, else the other way; on a CPU both are plain memory."""
    on_card = device != "cpu"
    source_slots, target_slots = num_units * max_tokens + 5, num_units * max_tokens + 9
    source_kind, target_kind = ("cpu", device) if loads else (device, "cpu")
    sources = [
        random_bytes(4, source_slots, kv_heads, dim, dtype=dtype, device=source_kind, pinned=on_card and loads)
        for _ in range(2)
    ]
    targets = [
        poisoned(4, target_slots, kv_heads, dim, dtype=dtype, device=target_kind, pinned=on_card and not loads)
        for _ in range(2)
    ]
    units = random_units(num_units, max_tokens, source_slots, target_slots)
    expected = [target.clone() for target in targets]
    copy_units_reference(*(s.to(target_kind) for s in sources), *expected, units, layers)
    copy_units(*sources, *targets, units.to(device), layers, num_programs)
    if on_card:
        torch.cuda.synchronize()
    for found, wanted in zip(targets, expected, strict=True):
        assert same_bytes(found, wanted)
