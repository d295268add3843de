"""Copies of several encodings of the same tokens, each moved to one place, as their weighted mean.

The mean is the first encoding plus the weighted deviations of the others from it, so what is written is the one fused
copy of `rotated_copy`: gather, rotate, add. Deviations are taken with both turned to the place that is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laban.kernels.fused_ops import rotate_reference
from laban.kernels.rotated_copy import copy_rotated, copy_rotated_reference

LAYERS_AT_ONCE = 8
"""Deviations are float32 beside the pool: of so many layers there is room."""


def copy_mixed(
    k_pool: Tensor,
    v_pool: Tensor,
    sources: Sequence[Tensor],
    offsets: Sequence[int],
    weights: Sequence[float],
    target_slots: Tensor,
    inv_freq: Tensor,
) -> None:
    """key[target] = sum_i weight_i R(offset_i) key[source_i]; values without R. In float32, rounded once.

    Args:
        k_pool, v_pool: [num_layers, num_slots, num_kv_heads, head_dim], dense, written at `target_slots`.
        sources: each [num_rows] int64, the slots of one encoding. None is a target.
        offsets: positions that each is moved by, of either sign.
        weights: that add up to 1; of a single source it is 1, and its values are copied bit by bit.
        target_slots: [num_rows] int64.
        inv_freq: [rotary_dim / 2] float32 or float64.
    """
    copy = copy_rotated if k_pool.is_cuda else copy_rotated_reference
    tables = [_table(offset, len(target_slots), inv_freq) for offset in offsets]
    if len(sources) == 1:
        copy(k_pool, v_pool, sources[0], target_slots, *tables[0])
        return
    for first in range(0, k_pool.shape[0], LAYERS_AT_ONCE):
        keys, values = k_pool[first : first + LAYERS_AT_ONCE], v_pool[first : first + LAYERS_AT_ONCE]
        base_k, base_v = _moved(keys, sources[0], tables[0]), _wide(values[:, sources[0]])
        delta_k, delta_v = torch.zeros_like(base_k), torch.zeros_like(base_v)
        for slots, table, weight in zip(sources[1:], tables[1:], weights[1:], strict=True):
            delta_k += weight * (_moved(keys, slots, table) - base_k)
            delta_v += weight * (_wide(values[:, slots]) - base_v)
        copy(keys, values, sources[0], target_slots, *tables[0], delta_k, delta_v)


def copy_mixed_reference(
    k_pool: Tensor,
    v_pool: Tensor,
    sources: Sequence[Tensor],
    offsets: Sequence[int],
    weights: Sequence[float],
    target_slots: Tensor,
    inv_freq: Tensor,
) -> None:
    """Layer by layer in float64. Arguments as `copy_mixed`."""
    for keys, values in zip(k_pool, v_pool, strict=True):
        mixed_k = torch.zeros(keys[target_slots].shape, dtype=torch.float64, device=keys.device)
        mixed_v = torch.zeros_like(mixed_k)
        for slots, offset, weight in zip(sources, offsets, weights, strict=True):
            angles = torch.full((len(slots), 1), offset, device=keys.device).double() * inv_freq.double()
            mixed_k += weight * rotate_reference(keys[slots].double(), angles.cos(), angles.sin())
            mixed_v += weight * values[slots].double()
        keys[target_slots], values[target_slots] = mixed_k.to(keys.dtype), mixed_v.to(values.dtype)


def _table(offset: int, num_rows: int, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """cos, sin [num_rows, rotary_dim / 2] float32, dense."""
    angles = (offset * inv_freq.double()).expand(num_rows, -1)
    return angles.cos().float().contiguous(), angles.sin().float().contiguous()


def _moved(keys: Tensor, slots: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """keys [num_layers, num_slots, num_kv_heads, head_dim] -> [num_layers, num_rows, num_kv_heads, head_dim]"""
    gathered = keys[:, slots]
    cos, sin = (each.repeat(len(gathered), 1) for each in table)
    return rotate_reference(gathered.flatten(0, 1), cos, sin).view(gathered.shape)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
