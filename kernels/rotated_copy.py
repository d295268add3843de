"""Copies of encodings, moved and corrected: gather, rotate, add, scatter, of all layers in one launch.

Attention turns queries, so an encoding that is only read elsewhere is never copied. A corrected one is: its keys
and values change, and the copy may as well be rotated for the place where it is read.
"""

from __future__ import annotations

from torch import Tensor

from laban.kernels.fused_ops import head_blocks, kernels, rotate_reference


def copy_rotated(
    k_pool: Tensor,
    v_pool: Tensor,
    source_slots: Tensor,
    target_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    delta_k: Tensor | None = None,
    delta_v: Tensor | None = None,
) -> None:
    """key[target] = R(offset) key[source] + delta_k; value[target] = value[source] + delta_v. In float32, rounded once.

    A delta of keys is added after the rotation, so it is given as rotated for the target's position. To hold
    deltas that fit any place, keep them with the rotation taken out and rotate them for the target before the call.
    Bytes: 4 * num_layers * num_rows * num_kv_heads * head_dim * itemsize, half as much again with both deltas.

    Args:
        k_pool, v_pool: [num_layers, num_slots, num_kv_heads, head_dim], dense, written at `target_slots`.
        source_slots, target_slots: [num_rows] int32 or int64. A row with a negative one is left out. No target may be
            another row's target or source; its own source it may be.
        cos, sin: [num_rows, rotary_dim / 2] float32, dense, of the offsets (`turn_table`, scaling 1).
        delta_k, delta_v: [num_layers, num_rows, num_kv_heads, head_dim], dense, of any floating dtype.
    """
    num_layers, _, num_kv_heads, dim = k_pool.shape
    num_rows = source_slots.shape[0]
    for x in (k_pool, v_pool, cos, sin, delta_k, delta_v):
        assert x is None or x.is_contiguous()
    if num_rows == 0:
        return
    blocks = head_blocks(num_kv_heads, dim, cos.shape[1])
    kernels().copy_rotated[(num_rows, num_layers, -(-num_kv_heads // blocks["HEADS"]))](
        k_pool, v_pool, source_slots, target_slots, cos, sin, delta_k, delta_v,
        num_rows, k_pool.stride(0), **blocks, num_warps=2,
    )  # fmt: skip


def copy_rotated_reference(
    k_pool: Tensor,
    v_pool: Tensor,
    source_slots: Tensor,
    target_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    delta_k: Tensor | None = None,
    delta_v: Tensor | None = None,
) -> None:
    rows = ((source_slots >= 0) & (target_slots >= 0)).nonzero().flatten()
    source, target = source_slots[rows].long(), target_slots[rows].long()
    for layer in range(k_pool.shape[0]):
        keys = rotate_reference(k_pool[layer, source], cos[rows], sin[rows])
        values = v_pool[layer, source].to(keys.dtype)
        if delta_k is not None:
            keys = keys + delta_k[layer, rows].to(keys.dtype)
        if delta_v is not None:
            values = values + delta_v[layer, rows].to(values.dtype)
        k_pool[layer, target] = keys.to(k_pool.dtype)
        v_pool[layer, target] = values.to(v_pool.dtype)
