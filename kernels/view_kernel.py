"""Attention over views in one fused kernel, by the plan of `view_plan`, and the merge of its partial results.

Each program takes items: a tile of query rows over some pieces of keys. For each piece it takes the rows' queries
turned for it, reads keys and values by page where they lie, and keeps one running softmax. Triton; the same kernel
in its interpreter on a CPU.

Bytes an iteration and layer: each tile's keys and values once (2 * keys * head_dim * itemsize a key head), its
queries once an item, and for each partial row head_dim + 1 float32 a head, written and read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from laban.kernels.launching import following
from laban.kernels.plan_layout import (
    CAUSAL,
    COUNT_BITS,
    HEADER,
    ITEM_INTS,
    NUM_ITEMS,
    PACKED,
    PACKED_INTS,
    PIECE_INTS,
    ROW_INTS,
)
from laban.kernels.view_plan import PlanShape
from laban.kernels.view_tiles import Scratch, Tile

LOG2_E = 1.4426950408889634
# Partial rows that are merged at once: few tokens have many, for their keys were cut finely to fill the card.
MERGE_BLOCK, MERGE_BLOCK_FEW_TOKENS, FEW_TOKENS = 16, 64, 8


def attend_views(
    q: Tensor,
    num_tokens: int,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Tensor,
    scratch: Scratch,
    shape: PlanShape,
    tile: Tile,
    scale: float,
    out: Tensor,
) -> None:
    """Attention of a batch's tokens, by `plan`. Writes `out` for every token that the plan names, no other row.

    Launches `shape.num_programs` programs, of which each takes every so-many-th item.

    Args:
        q: [num_tokens + num_turned or more, num_heads, head_dim] rotated for the tokens' own positions, then the
            plan's turned rows.
        k_pool, v_pool: [num_slots, num_kv_heads, head_dim] with the new tokens' keys and values in place.
        plan: int32 [shape.size], as `build_plan` wrote it.
        out: [num_tokens, num_heads, head_dim].
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k_pool.shape[1]
    group = num_heads // num_kv_heads
    block_d = _block_size(head_dim)
    assert shape.rows_per_tile * group <= tile.block_m
    assert q.is_contiguous()
    assert out.is_contiguous()
    _attend[(shape.num_programs,)](
        q, k_pool, v_pool, plan, out, scratch.out, scratch.lse,
        scale * LOG2_E, num_tokens,
        k_pool.stride(0), k_pool.stride(1),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_D=block_d,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, PAGE=shape.page_size,
        ITEMS_AT=shape.items_at, WINDOW=0 if shape.window is None else shape.window,
        ITEM_INTS=ITEM_INTS, ROW_INTS=ROW_INTS, PIECE_INTS=PIECE_INTS, NUM_ITEMS=NUM_ITEMS,
        TURNED_AT=HEADER, CAUSAL=CAUSAL, PACKED=PACKED, PACKED_INTS=PACKED_INTS, COUNT_BITS=COUNT_BITS,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    few = num_tokens <= FEW_TOKENS
    _merge[(num_tokens, num_heads)](
        plan, scratch.out, scratch.lse, out,
        NUM_HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_D=block_d,
        BLOCK_P=MERGE_BLOCK_FEW_TOKENS if few else MERGE_BLOCK, MERGE_AT=shape.merge_at,
        num_warps=4 if few else 2, **following(q.device),
    )  # fmt: skip


def _block_size(size: int) -> int:
    """That a matrix product takes: a power of two, at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _attend(
    q: tl.tensor, k_pool: tl.tensor, v_pool: tl.tensor, plan: tl.tensor, out: tl.tensor, partial: tl.tensor,
    lse: tl.tensor, scale: tl.tensor, num_tokens: tl.tensor, slot_stride: tl.tensor, head_stride: tl.tensor,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, ITEMS_AT: tl.constexpr, WINDOW: tl.constexpr,
    ITEM_INTS: tl.constexpr, ROW_INTS: tl.constexpr, PIECE_INTS: tl.constexpr, NUM_ITEMS: tl.constexpr,
    TURNED_AT: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr, PACKED_INTS: tl.constexpr,
    COUNT_BITS: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    # Not let in early, nor letting in: its programs fill the card, and waiting ones would take room from it.
    num_work = tl.load(plan + NUM_ITEMS) * NUM_KV_HEADS
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item = plan + ITEMS_AT + (work // NUM_KV_HEADS) * ITEM_INTS
        kv_head = work % NUM_KV_HEADS
        first_row, num_rows = tl.load(item), tl.load(item + 1)
        piece_at, num_pieces = tl.load(item + 2), tl.load(item + 3)
        first_partial = tl.load(item + 4)
        r = m // GROUP
        head = kv_head * GROUP + m % GROUP
        valid = r < num_rows
        row = plan + first_row + r * ROW_INTS
        token = tl.load(row, mask=valid, other=0)
        number = tl.load(row + 1, mask=valid, other=0)
        position = tl.load(row + 2, mask=valid, other=0)
        k_head, v_head = k_pool + kv_head * head_stride, v_pool + kv_head * head_stride
        row_mask = valid[:, None] & in_head[None, :]

        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for p in range(num_pieces):
            piece = plan + piece_at + p * PIECE_INTS
            pages = plan + tl.load(piece)
            begin, end = tl.load(piece + 1), tl.load(piece + 2)
            first_turned, start, kind = tl.load(piece + 3), tl.load(piece + 4), tl.load(piece + 5)
            q_row = tl.where(first_turned < 0, token, num_tokens + first_turned + number).to(tl.int64)
            q_at = (q_row * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
            queries = tl.load(q + q_at[:, None] + d[None, :], mask=row_mask, other=0.0)
            if kind == PACKED:
                for first in range(begin, end, BLOCK_N):
                    n = first + tl.arange(0, BLOCK_N)
                    in_piece = n < end
                    listed = pages + n // PAGE * PACKED_INTS
                    page = tl.load(listed, mask=in_piece, other=0)
                    code = tl.load(listed + 1, mask=in_piece, other=0)
                    place = tl.load(listed + 2, mask=in_piece, other=0) + n % PAGE
                    in_piece = in_piece & (n % PAGE < code % (1 << COUNT_BITS))
                    seen = in_piece[None, :] & ((code >> COUNT_BITS)[None, :] == number[:, None])
                    seen = seen & (place[None, :] <= position[:, None])
                    if WINDOW > 0:
                        seen = seen & (place[None, :] > position[:, None] - WINDOW)
                    slot = (page * PAGE + n % PAGE).to(tl.int64) * slot_stride
                    highest, total, acc = _block(
                        queries, k_head, v_head, slot, in_piece, seen, d, in_head, highest, total, acc, scale,
                        PRECISION, ISOLATE=True,
                    )  # fmt: skip
            else:
                # The last key that a row sees, and for a window the first, as indices into the entry.
                own = position
                if WINDOW > 0:
                    turned = valid & (first_turned + 0 * number >= 0)
                    own = tl.load(plan + TURNED_AT + first_turned + number, mask=turned, other=0)
                    own = tl.where(first_turned < 0, position, own)
                own -= start
                last = tl.where(kind == CAUSAL, own, 2147483647)
                for first in range(begin, end, BLOCK_N):
                    n = first + tl.arange(0, BLOCK_N)
                    in_piece = n < end
                    page = tl.load(pages + n // PAGE, mask=in_piece, other=0)
                    seen = in_piece[None, :] & (n[None, :] <= last[:, None])
                    if WINDOW > 0:
                        seen = seen & (n[None, :] > own[:, None] - WINDOW)
                    slot = (page * PAGE + n % PAGE).to(tl.int64) * slot_stride
                    highest, total, acc = _block(
                        queries, k_head, v_head, slot, in_piece, seen, d, in_head, highest, total, acc, scale,
                        PRECISION, ISOLATE=False,
                    )  # fmt: skip
        # A row that saw nothing has total 0: it weighs nothing.
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        if first_partial < 0:
            place = (token.to(tl.int64) * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
            tl.store(out + place[:, None] + d[None, :], acc.to(out.dtype.element_ty), mask=row_mask)
        else:
            row_head = (first_partial + r).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
            tl.store(partial + row_head[:, None] * HEAD_DIM + d[None, :], acc, mask=row_mask)
            tl.store(lse + row_head, tl.where(total > 0, highest + tl.log2(total), float("-inf")), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _block(
    queries: tl.tensor, k_head: tl.tensor, v_head: tl.tensor, slot: tl.tensor, in_piece: tl.tensor, seen: tl.tensor,
    d: tl.tensor, in_head: tl.tensor, highest: tl.tensor, total: tl.tensor, acc: tl.tensor, scale: tl.tensor,
    PRECISION: tl.constexpr, ISOLATE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """One block of keys into the running softmax; returns (highest, total, acc).

    ISOLATE keeps a value that is no finite number from rows that do not see it: no weight of 0 does.
    """
    # Keys and values are loaded alike, so that both share their addresses.
    mask = in_piece[:, None] & in_head[None, :]
    k = tl.load(k_head + slot[:, None] + d[None, :], mask=mask, other=0.0)
    scores = tl.dot(queries, tl.trans(k), input_precision=PRECISION) * scale
    if ISOLATE:
        v = tl.load(v_head + slot[:, None] + d[None, :], mask=mask, other=0.0)
        sound = tl.min(((v - v) == 0).to(tl.int32), 1) == 1
        v = tl.where(sound[:, None], v, 0.0)
        scores = tl.where(sound[None, :], scores, float("nan"))
    scores = tl.where(seen, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(scores - finite[:, None])
    decay = tl.exp2(highest - finite)
    if not ISOLATE:
        v = tl.load(v_head + slot[:, None] + d[None, :], mask=mask, other=0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return new_highest, total * decay + tl.sum(weights, 1), acc


@triton.jit  # type: ignore[untyped-decorator]
def _merge(
    plan: tl.tensor, partial: tl.tensor, lse: tl.tensor, out: tl.tensor, NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, MERGE_AT: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token, head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(plan + MERGE_AT + token), tl.load(plan + MERGE_AT + token + 1)
    if end > begin:
        d = tl.arange(0, BLOCK_D)
        in_head = d < HEAD_DIM
        highest = float("-inf")
        total = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for first in range(begin, end, BLOCK_P):
            n = first + tl.arange(0, BLOCK_P)
            listed = n < end
            row = tl.load(plan + n, mask=listed, other=0).to(tl.int64) * NUM_HEADS + head
            log_sum = tl.load(lse + row, mask=listed, other=float("-inf"))
            parts = tl.load(
                partial + row[:, None] * HEAD_DIM + d[None, :], mask=listed[:, None] & in_head[None, :], other=0.0
            )
            new_highest = tl.maximum(highest, tl.max(log_sum, 0))
            finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            weights = tl.exp2(log_sum - finite)
            decay = tl.exp2(highest - finite)
            acc = acc * decay + tl.sum(parts * weights[:, None], 0)
            total = total * decay + tl.sum(weights, 0)
            highest = new_highest
        merged = acc / tl.where(total > 0, total, 1.0)
        place = (token.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
        tl.store(out + place + d, merged.to(out.dtype.element_ty), mask=in_head)
