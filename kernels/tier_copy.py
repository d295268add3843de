"""Fragments of an encoding between the device's pool and a pool in pinned host memory, in one launch.

A copy engine takes some microseconds a piece, so many small pieces are better moved by a kernel that reads or writes
the host's memory itself. Few programs saturate the link, and leave the other processors to whatever runs beside.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

UNIT_BYTES = 32 << 10  # of one layer's keys, the most that a unit has
NUM_PROGRAMS = 16
NUM_WARPS = 8
WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
BLOCK_BYTES = 16 << 10  # of keys, and as much of values, that a program has under way at once


@functools.cache
def _kernels() -> ModuleType:
    """Imported at the first launch: machines without a card need no Triton."""
    from laban.kernels import tier_kernel

    return tier_kernel


def max_unit_tokens(row_bytes: int) -> int:
    """Tokens of a unit, of which each layer's keys are `row_bytes`, so that programs share the work evenly."""
    return max(1, UNIT_BYTES // row_bytes)


def copy_units(
    source_k: Tensor,
    source_v: Tensor,
    target_k: Tensor,
    target_v: Tensor,
    units: Tensor,
    layers: range,
    num_programs: int = NUM_PROGRAMS,
) -> None:
    """target[layer, t : t + n] = source[layer, s : s + n] for each unit (s, t, n) and layer, keys and values.

    Bytes: 4 * len(layers) * num_tokens * row_bytes, half of them over the link.

    Args:
        source_k, source_v, target_k, target_v: [num_layers, num_slots, num_kv_heads, head_dim], dense, of one dtype;
            on the card, or pinned on the host. Sources and targets may not overlap.
        units: [num_units, 3] int32 on the card: first slot of the source, of the target, number of tokens.
        layers: consecutive ones, the same of all four.
        num_programs: of the kernel, each of which takes part of a processor while it runs.
    """
    num_units = units.shape[0]
    if num_units == 0 or len(layers) == 0:
        return
    assert layers.step == 1
    row_bytes = source_k[0, 0].numel() * source_k.itemsize
    word_bytes = next(size for size in WORDS if row_bytes % size == 0)
    pools = [as_words(pool, word_bytes) for pool in (source_k, source_v, target_k, target_v)]
    _kernels().copy_units[(min(num_programs, num_units * len(layers)),)](
        *pools, units, num_units, layers.start, len(layers), source_k.shape[1], target_k.shape[1],
        ROW=row_bytes // word_bytes, BLOCK=BLOCK_BYTES // word_bytes, num_warps=NUM_WARPS,
    )  # fmt: skip


def as_words(pool: Tensor, word_bytes: int) -> Tensor:
    """[num_words], over the same memory."""
    assert pool.is_contiguous()
    return pool.view(-1).view(WORDS[word_bytes])


def copy_units_reference(
    source_k: Tensor, source_v: Tensor, target_k: Tensor, target_v: Tensor, units: Tensor, layers: range
) -> None:
    for source_slot, target_slot, length in units.tolist():
        for source, target in ((source_k, target_k), (source_v, target_v)):
            rows = source[layers.start : layers.stop, source_slot : source_slot + length]
            target[layers.start : layers.stop, target_slot : target_slot + length] = rows
