"""The small operations of a forward on a CUDA card, each one launch instead of torch's two to ten.

Between the matrix products of a decoded token lie a few kilobytes of arithmetic, so launches are its price: an
operation here costs about 2 us for one row, and the bytes it moves, once each, for many. Nothing here waits
for the card or looks at data on the host, so all of it may be captured in a CUDA graph (after one run outside, which
compiles it). Beside each stands its definition in plain torch, in float32 inside, or float64 for float64 inputs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from laban.kernels.launching import following
from laban.kernels.rotary import turn

Activation = Literal["silu", "gelu_tanh"]

BLOCK_ELEMENTS = 1024  # of a program that works on several small rows, or on a part of a large one
ELEMENTS_PER_WARP = 256  # 8 a thread: one load of 16 bytes, of 2-byte elements


@functools.cache
def kernels() -> ModuleType:
    """Imported at the first launch: machines without a card need no Triton."""
    from laban.kernels import fused_kernels

    return fused_kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool = False) -> Tensor:
    """Root mean square normalization over the last dimension: x / sqrt(mean(x^2) + eps) * weight.

    Bytes: x and the result once, 2 * num_rows * size * itemsize.

    Args:
        x: [num_rows, size] or [num_rows, num_heads, size], any strides but the last, which is 1.
        weight: [size].
        unit_offset: Gemma's kind: times 1 + weight, and all in float32. Else rounded before the product.

    Returns:
        Of x's shape and dtype, dense, and transposed in memory if x is.
    """
    if x.dim() == 3 and x.stride(0) < x.stride(1):
        return rms_norm(x.transpose(0, 1), weight, eps, unit_offset).transpose(0, 1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inner = x.shape[1] if x.dim() == 3 else 1
    inner_stride = x.stride(1) if x.dim() == 3 else 0
    _normalize(x, None, weight, out, None, x.shape[0] * inner, inner, x.stride(0), inner_stride, eps, unit_offset)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), the sum rounded to x's dtype first.

    Bytes: 4 * num_rows * size * itemsize.

    Args:
        x, residual: [num_rows, size], any stride of rows.
    """
    normed, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _normalize(x, residual, weight, normed, total, x.shape[0], 1, x.stride(0), 0, eps, unit_offset)
    return normed, total


def _normalize(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    normed: Tensor,
    total: Tensor | None,
    num_rows: int,
    inner: int,
    outer_stride: int,
    inner_stride: int,
    eps: float,
    unit_offset: bool,
) -> None:
    size = x.shape[-1]
    assert x.stride(-1) == 1
    assert residual is None or residual.stride(-1) == 1
    if num_rows == 0:
        return
    block = _power_of_2(size)
    rows = max(1, BLOCK_ELEMENTS // block)
    kernels().normalize[(-(-num_rows // rows),)](
        x, residual, weight, normed, total,
        num_rows, inner, outer_stride, inner_stride, residual.stride(0) if residual is not None else 0, eps,
        UNIT_OFFSET=unit_offset, SIZE=size, ROWS=rows, BLOCK=block, num_warps=_num_warps(rows * block),
        **following(x.device),
    )  # fmt: skip


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up of the two halves of `gate_up` [num_rows, 2 * size] -> [num_rows, size].

    Bytes: 3 * num_rows * size * itemsize. In float32 up to the one rounding at the end.
    """
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1
    out = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        block = min(BLOCK_ELEMENTS, _power_of_2(size))
        kernels().gate[(num_rows, -(-size // block))](
            gate_up, out, gate_up.stride(0),
            SIZE=size, GELU_TANH=activation == "gelu_tanh", BLOCK=block, num_warps=_num_warps(block),
            **following(out.device),
        )  # fmt: skip
    return out


def turn_table(offsets: Tensor, inv_freq: Tensor, scaling: float, cos: Tensor, sin: Tensor) -> None:
    """Fills `cos` and `sin` with those of offset * frequency, times `scaling`; right to 1e-6 for offsets of a million.

    A position gives the table that rotates for it; minus an offset the one that turns a query back by it
    (`scaling` 1, as the query has its own already). Bytes: 8 * num_rows * rotary_dim / 2.

    Args:
        offsets: [num_rows] int32 or int64, of either sign.
        inv_freq: [rotary_dim / 2] float32 or float64.
        cos, sin: [num_rows, rotary_dim / 2] float32, dense, written.
    """
    num_rows, half = cos.shape
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    if num_rows == 0:
        return
    block = _power_of_2(half)
    rows = max(1, BLOCK_ELEMENTS // block)
    kernels().fill_turns[(-(-num_rows // rows),)](
        offsets, inv_freq, cos, sin, num_rows, scaling, HALF=half, ROWS=rows, BLOCK=block
    )


@dataclass(frozen=True, slots=True)
class TurnedRows:
    """Rows of a batch's queries, each rotated for a position other than its own."""

    tokens: Tensor  # [num_rows or more] int32: which row of the batch each is
    count: Tensor  # int32, on the device: how many there are
    cos: Tensor  # [num_rows or more, rotary_dim / 2] float32
    sin: Tensor


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    slots: Tensor,
    turned: TurnedRows | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Rotates queries and keys, and writes keys and values into one layer's pool. One launch.

    Bytes: (2 * num_heads + 4 * num_kv_heads) * num_rows * head_dim * itemsize, 2 * num_heads * head_dim * itemsize for
    each turned row, and the tables.

    Args:
        q: [num_rows, num_heads, head_dim]; k, v: [num_rows, num_kv_heads, head_dim]. Any strides but the last,
            which is 1: slices of one merged product.
        cos, sin: [num_rows, rotary_dim / 2] float32, dense. The first rotary_dim channels of a head are rotated, in
            the half-split layout; the others stay.
        k_pool, v_pool: [num_slots, num_kv_heads, head_dim], dense, written at `slots`.
        slots: [num_rows] int32 or int64, all different; a negative one is written nowhere.
        turned: rows of queries that are wanted once more, rotated for another position.
        out: [num_rows + turned.num_rows or more, num_heads, head_dim], dense; None takes a new one.

    Returns:
        The rotated queries [num_rows, num_heads, head_dim], and after them the turned ones: `out`.
    """
    num_rows, num_heads, dim = q.shape
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    assert k_pool.is_contiguous()
    assert v_pool.is_contiguous()
    if out is None:
        assert turned is None
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    assert out.is_contiguous()
    if num_rows == 0:
        return out
    # Programs for turned rows whose number the host does not know: those of a decode over 16 messages each.
    spare = 0 if turned is None else min(max(16 * num_rows, 64), 1024)
    turns = (slots, slots, cos, sin) if turned is None else (turned.tokens, turned.count, turned.cos, turned.sin)
    blocks = head_blocks(k.shape[1], dim, cos.shape[1])
    q_parts, kv_parts = (-(-n // blocks["HEADS"]) for n in (num_heads, k.shape[1]))
    kernels().rotate_and_write[(num_rows + spare, q_parts + 2 * kv_parts)](
        q, k, v, cos, sin, k_pool, v_pool, slots, out, *turns, num_rows,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        NUM_HEADS=num_heads, **blocks, num_warps=2, **following(q.device),
    )  # fmt: skip
    return out


def head_blocks(num_kv_heads: int, dim: int, half: int) -> dict[str, int]:
    """The sizes that kernels over heads are compiled for. A program's heads have some 1,024 channels."""
    dim_block = _power_of_2(dim)
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "DIM": dim,
        "HALF": half,
        "HEADS": min(_power_of_2(num_kv_heads), max(1, BLOCK_ELEMENTS // dim_block)),
        "HALF_BLOCK": _power_of_2(half),
        "REST_BLOCK": _power_of_2(dim - 2 * half) if dim > 2 * half else 0,
        "DIM_BLOCK": dim_block,
    }


def _power_of_2(size: int) -> int:
    """The least that is not below `size`."""
    return 1 << (size - 1).bit_length()


def _num_warps(elements: int) -> int:
    return min(16, max(1, elements // ELEMENTS_PER_WARP))


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of one computation, of whole tensors, agree but for rounding in their dtype."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    tolerance = max(1e-5, 4 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool(((found - expected).abs() <= tolerance).all())


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, unit_offset: bool = False) -> Tensor:
    """`rms_norm` of x [..., size]."""
    wide = _wide(x)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if unit_offset:
        return (normed * (1.0 + _wide(weight))).to(x.dtype)
    return normed.to(x.dtype) * weight


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm_reference(total, weight, eps, unit_offset), total


def gated_reference(gate_up: Tensor, activation: Activation) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, -1)
    active = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    return (active * up).to(gate_up.dtype)


def turn_table_reference(offsets: Tensor, inv_freq: Tensor, scaling: float, cos: Tensor, sin: Tensor) -> None:
    angles = offsets.double()[:, None] * inv_freq.double()
    cos.copy_(angles.cos() * scaling)
    sin.copy_(angles.sin() * scaling)


def rotate_and_write_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    slots: Tensor,
) -> Tensor:
    rows = (slots >= 0).nonzero().flatten()
    k_pool[slots[rows].long()] = rotate_reference(k, cos, sin)[rows].to(k_pool.dtype)
    v_pool[slots[rows].long()] = v[rows].to(v_pool.dtype)
    return rotate_reference(q, cos, sin).to(q.dtype)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [num_rows, heads, dim] rotated by cos, sin [num_rows, rotary_dim / 2], not rounded."""
    wide = _wide(x)
    cos, sin = (torch.cat((y, y), -1)[:, None].to(wide.dtype) for y in (cos, sin))
    return turn(wide, cos, sin)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
