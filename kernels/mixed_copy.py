"""Copies of several encodings of the same tokens, each moved to one place, as their weighted mean.

One pass over the pool: every source's row is read once, turned to the place that is written, and added up in float32.
Attention turns queries, so an encoding that is only read elsewhere is never copied; what is mixed has to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from laban.kernels.fused_ops import head_blocks, kernels, rotate_reference
from laban.kernels.rotated_copy import copy_rotated, copy_rotated_reference

try:
    from laban.kernels.compiled_loops import mix_rows
except ImportError:  # numba is not installed, or not for this machine
    mix_rows = None


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

    Bytes: 2 * num_layers * num_rows * num_kv_heads * head_dim * itemsize, once for each source and once to write.

    Args:
        k_pool, v_pool: [num_layers, num_slots, num_kv_heads, head_dim], dense, written at `target_slots`.
        sources: each [num_rows] int64, the slots of one encoding. None is a target.
        offsets: positions that each is moved by, of either sign.
        weights: that add up to 1; of a single source it is 1, and its values are copied bit by bit.
        target_slots: [num_rows] int64.
        inv_freq: [rotary_dim / 2] float32 or float64.
    """
    num_rows = len(target_slots)
    if num_rows == 0:
        return
    device = k_pool.device
    angles = torch.tensor(offsets, dtype=torch.float64).to(device)[:, None] * inv_freq.double()
    cos, sin = angles.cos().float(), angles.sin().float()
    if len(sources) == 1:
        cos, sin = (each.expand(num_rows, -1).contiguous() for each in (cos, sin))
        copy = copy_rotated if k_pool.is_cuda else copy_rotated_reference
        copy(k_pool, v_pool, sources[0], target_slots, cos, sin)
        return
    slots, shares = torch.stack(list(sources)), torch.tensor(weights, dtype=torch.float32)
    if k_pool.is_cuda:
        launch_mixed(k_pool, v_pool, slots, target_slots, cos, sin, shares.to(device))
    elif mix_rows is not None and k_pool.dtype == torch.float32:
        _mix_in_threads(k_pool, v_pool, [each.numpy() for each in (slots, target_slots, cos, sin, shares)])
    else:
        copy_mixed_reference(k_pool, v_pool, sources, offsets, weights, target_slots, inv_freq)


def launch_mixed(
    k_pool: Tensor, v_pool: Tensor, sources: Tensor, target_slots: Tensor, cos: Tensor, sin: Tensor, weights: Tensor
) -> None:
    """sources [num_sources, num_rows] int64; cos, sin [num_sources, rotary_dim / 2] and weights [num_sources] float32;
    all dense and on the pool's device."""
    num_layers, _, num_kv_heads, dim = k_pool.shape
    assert k_pool.is_contiguous()
    assert v_pool.is_contiguous()
    num_sources, num_rows = sources.shape
    blocks = head_blocks(num_kv_heads, dim, cos.shape[1])
    kernels().copy_mixed[(num_rows, num_layers, -(-num_kv_heads // blocks["HEADS"]))](
        k_pool, v_pool, sources, target_slots, cos, sin, weights, num_rows, k_pool.stride(0),
        NUM_SOURCES=num_sources, **blocks, num_warps=2,
    )  # fmt: skip


def _mix_in_threads(k_pool: Tensor, v_pool: Tensor, arrays: list[Any]) -> None:
    """The layers shared out over as many threads as torch has."""
    count = min(torch.get_num_threads(), len(k_pool))
    parts = zip(k_pool.tensor_split(count), v_pool.tensor_split(count), strict=True)
    calls = [partial(mix_rows, keys.numpy(), values.numpy(), *arrays) for keys, values in parts]
    under_way = [_threads(count).submit(call) for call in calls[1:]]
    calls[0]()
    for done in under_way:
        done.result()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "mix")


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
