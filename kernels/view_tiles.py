"""The fused kernel's tiles, and where its partial results lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """The kernel's block of rows (tokens times heads of a group) and keys, and how Triton is to compile it."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class Scratch:
    """Partial results on their way between the two kernels, float32."""

    out: Tensor  # [max_partials, num_heads, head_dim]
    lse: Tensor  # [max_partials, num_heads] log2 of the sums

    @classmethod
    def empty(cls, max_partials: int, num_heads: int, head_dim: int, device: torch.device) -> Scratch:
        out = torch.empty(max_partials, num_heads, head_dim, dtype=torch.float32, device=device)
        return cls(out, torch.empty(max_partials, num_heads, dtype=torch.float32, device=device))


def pick_tile(num_rows: int, head_dim: int, dtype: torch.dtype) -> Tile:
    """For `num_rows` query rows a key head in a batch of decodes: tokens times heads of a group."""
    if dtype == torch.float32:
        return Tile(16 if num_rows <= 16 else 32, 32, 4, 1, 2)
    if head_dim > 128:
        return Tile(16, 32, 4, 2, 2) if num_rows <= 16 else Tile(64, 32, 4, 2, 1)
    if num_rows <= 16:
        return Tile(16, 64, 4, 3, 2)
    if num_rows <= 64:
        return Tile(64, 64, 4, 3, 2)
    return Tile(128, 64, 8, 3, 1)
