"""Attention over views in one fused kernel, by the plan of `view_plan`, and the merge of its partial results.

Each program takes items: a tile of query rows over some pieces of keys. It turns the queries for each piece on the
way in, reads keys and values by page where they lie, and keeps one running softmax. Triton; the same kernel in its
interpreter on a CPU.

Bytes an iteration and layer: each tile's keys and values once (2 * keys * head_dim * itemsize a key head), its
queries once an item, and for each partial row head_dim + 1 float32 a head, written and read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from laban.kernels.view_plan import (
    CAUSAL,
    COUNT_BITS,
    HEADER,
    ITEM_INTS,
    NUM_ITEMS,
    PACKED,
    PACKED_INTS,
    PIECE_INTS,
    ROW_INTS,
    Buffer,
    PlanShape,
)

LOG2_E = 1.4426950408889634
MERGE_BLOCK = 16


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


def attend_views(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Tensor,
    cos: Tensor,
    sin: Tensor,
    scratch: Scratch,
    shape: PlanShape,
    tile: Tile,
    scale: float,
    out: Tensor,
    num_programs: int,
) -> None:
    """Attention of a batch's tokens, by `plan`. Writes `out` for every token that the plan names, no other row.

    Args:
        q: [num_tokens, num_heads, head_dim] rotated for the tokens' own positions; rows may be strided.
        k_pool, v_pool: [num_slots, num_kv_heads, head_dim] with the new tokens' keys and values in place.
        plan: int32 [shape.size], as `build_plan` wrote it.
        cos, sin: float32 [max_turns, rotary_dim / 2] of the plan's offsets times the inverse frequencies.
        out: [num_tokens, num_heads, head_dim].
        num_programs: launched, a fixed number where the launch is captured; each takes every so-many-th item.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k_pool.shape[1]
    group = num_heads // num_kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    assert shape.rows_per_tile * group <= tile.block_m
    assert q.stride(2) == 1
    assert q.stride(1) == head_dim
    assert out.is_contiguous()
    _attend[(num_programs,)](
        q, k_pool, v_pool, plan, cos, sin, out, scratch.out, scratch.lse,
        scale * LOG2_E,
        q.stride(0), k_pool.stride(0), k_pool.stride(1),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_D=block_d, HALF=cos.shape[1],
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, PAGE=shape.page_size,
        ITEMS_AT=shape.items_at, WINDOW=0 if shape.window is None else shape.window,
        ITEM_INTS=ITEM_INTS, ROW_INTS=ROW_INTS, PIECE_INTS=PIECE_INTS, NUM_ITEMS=NUM_ITEMS,
        OFFSETS_AT=HEADER, CAUSAL=CAUSAL, PACKED=PACKED, PACKED_INTS=PACKED_INTS, COUNT_BITS=COUNT_BITS,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    _merge[(num_tokens, num_heads)](
        plan, scratch.out, scratch.lse, out,
        NUM_HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_D=block_d, BLOCK_P=MERGE_BLOCK, MERGE_AT=shape.merge_at,
        num_warps=2,
    )  # fmt: skip


@triton.jit
def _attend(
    q, k_pool, v_pool, plan, cos, sin, out, partial, lse,
    scale,
    q_stride, slot_stride, head_stride,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HALF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    ITEMS_AT: tl.constexpr, WINDOW: tl.constexpr,
    ITEM_INTS: tl.constexpr, ROW_INTS: tl.constexpr, PIECE_INTS: tl.constexpr, NUM_ITEMS: tl.constexpr,
    OFFSETS_AT: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr, PACKED_INTS: tl.constexpr,
    COUNT_BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    num_work = tl.load(plan + NUM_ITEMS) * NUM_KV_HEADS
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    turns = d < 2 * HALF
    # rotate_half: the other half of the rotated channels, the first half negated.
    partner = tl.where(d < HALF, d + HALF, tl.where(turns, d - HALF, d))
    sign = tl.where(d < HALF, 1.0, -1.0)
    frequency = tl.where(d < HALF, d, tl.where(turns, d - HALF, 0))
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
        token = tl.load(row, mask=valid, other=0).to(tl.int64)
        reader = tl.load(row + 1, mask=valid, other=0)
        position = tl.load(row + 2, mask=valid, other=0)
        q_row = q + token * q_stride + head * HEAD_DIM
        q_mask = valid[:, None] & in_head[None, :]

        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for p in range(num_pieces):
            piece = plan + piece_at + p * PIECE_INTS
            pages = plan + tl.load(piece)
            begin, end = tl.load(piece + 1), tl.load(piece + 2)
            first_turn, start, kind = tl.load(piece + 3), tl.load(piece + 4), tl.load(piece + 5)
            if kind == PACKED:
                turned = tl.load(q_row[:, None] + d[None, :], mask=q_mask, other=0.0)
                for first in range(begin, end, BLOCK_N):
                    n = first + tl.arange(0, BLOCK_N)
                    in_piece = n < end
                    listed = pages + n // PAGE * PACKED_INTS
                    page = tl.load(listed, mask=in_piece, other=0).to(tl.int64)
                    code = tl.load(listed + 1, mask=in_piece, other=0)
                    place = tl.load(listed + 2, mask=in_piece, other=0) + n % PAGE
                    in_piece = in_piece & (n % PAGE < code % (1 << COUNT_BITS))
                    seen = in_piece[None, :] & ((code >> COUNT_BITS)[None, :] == reader[:, None])
                    seen = seen & (place[None, :] <= position[:, None])
                    if WINDOW > 0:
                        seen = seen & (place[None, :] > position[:, None] - WINDOW)
                    slot = (page * PAGE + n % PAGE) * slot_stride + kv_head * head_stride
                    highest, total, acc = _block(
                        turned, k_pool, v_pool, slot, in_piece, seen, d, in_head, highest, total, acc, scale, PRECISION
                    )
            else:
                turn = first_turn + reader
                at = turn[:, None] * HALF + frequency[None, :]
                c = tl.load(cos + at, mask=valid[:, None] & turns[None, :], other=1.0)
                s = tl.load(sin + at, mask=valid[:, None] & turns[None, :], other=0.0)
                x = tl.load(q_row[:, None] + d[None, :], mask=q_mask, other=0.0)
                y = tl.load(q_row[:, None] + partner[None, :], mask=q_mask & turns[None, :], other=0.0)
                turned = (x * c + y * (s * sign[None, :])).to(q.dtype.element_ty)
                # The last key that a row sees, and for a window the first, as indices into the entry.
                own = position - start - tl.load(plan + OFFSETS_AT + turn, mask=valid, other=0)
                last = tl.where(kind == CAUSAL, own, 2147483647)
                for first in range(begin, end, BLOCK_N):
                    n = first + tl.arange(0, BLOCK_N)
                    in_piece = n < end
                    page = tl.load(pages + n // PAGE, mask=in_piece, other=0).to(tl.int64)
                    seen = in_piece[None, :] & (n[None, :] <= last[:, None])
                    if WINDOW > 0:
                        seen = seen & (n[None, :] > own[:, None] - WINDOW)
                    slot = (page * PAGE + n % PAGE) * slot_stride + kv_head * head_stride
                    highest, total, acc = _block(
                        turned, k_pool, v_pool, slot, in_piece, seen, d, in_head, highest, total, acc, scale, PRECISION
                    )
        # A row that saw nothing has total 0: it weighs nothing.
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        if first_partial < 0:
            place = (token * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
            tl.store(out + place[:, None] + d[None, :], acc.to(out.dtype.element_ty), mask=q_mask)
        else:
            row_head = (first_partial + r).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
            tl.store(partial + row_head[:, None] * HEAD_DIM + d[None, :], acc, mask=q_mask)
            tl.store(lse + row_head, tl.where(total > 0, highest + tl.log2(total), float("-inf")), mask=valid)


@triton.jit
def _block(
    turned, k_pool, v_pool, slot, in_piece, seen, d, in_head, highest, total, acc, scale, PRECISION: tl.constexpr
):
    """One block of keys into the running softmax."""
    k = tl.load(k_pool + slot[None, :] + d[:, None], mask=in_piece[None, :] & in_head[:, None], other=0.0)
    scores = tl.where(seen, tl.dot(turned, k, input_precision=PRECISION) * scale, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(scores - finite[:, None])
    decay = tl.exp2(highest - finite)
    v = tl.load(v_pool + slot[:, None] + d[None, :], mask=in_piece[:, None] & in_head[None, :], other=0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return new_highest, total * decay + tl.sum(weights, 1), acc


@triton.jit
def _merge(
    plan, partial, lse, out,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    MERGE_AT: tl.constexpr,
):  # fmt: skip
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


def attend_views_reference(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Buffer,
    inv_freq: Tensor,
    shape: PlanShape,
    scale: float,
    out: Tensor,
) -> None:
    """What the plan says, item by item in plain torch, in float64. Arguments as `attend_views`."""
    from laban.kernels.rotary import turn, turn_tables

    group = q.shape[1] // k_pool.shape[1]
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for i in range(int(plan[NUM_ITEMS])):
        item = plan[shape.items_at + ITEM_INTS * i :][:ITEM_INTS]
        rows = plan[item[0] :][: ROW_INTS * item[1]].reshape(-1, ROW_INTS)
        for token, reader, position in rows.tolist():
            scores, values = [], []
            for list_at, begin, end, first_turn, start, kind in (
                plan[item[2] :][: PIECE_INTS * item[3]].reshape(-1, PIECE_INTS).tolist()
            ):
                keys = np.arange(begin, end)
                if kind == PACKED:
                    offset = 0
                    pages, codes, places = plan[list_at + PACKED_INTS * (keys // shape.page_size) + [[0], [1], [2]]]
                    places = places + keys % shape.page_size
                    seen = (codes >> COUNT_BITS == reader) & (keys % shape.page_size < codes % (1 << COUNT_BITS))
                    seen &= places <= position
                else:
                    offset = int(plan[HEADER + first_turn + reader])
                    pages, places = plan[list_at + keys // shape.page_size], start + offset + keys
                    seen = places <= position if kind == CAUSAL else np.ones(len(keys), bool)
                if shape.window is not None:
                    seen &= position - places < shape.window
                slots = torch.from_numpy((pages.astype("int64") * shape.page_size + keys % shape.page_size)[seen])
                slots = slots.to(q.device)
                cos, sin = turn_tables(torch.tensor([offset]), inv_freq.cpu(), torch.float64)
                query = turn(q[token : token + 1].double(), cos.to(q.device), sin.to(q.device))[0]
                scores.append(torch.einsum("hd,nhd->hn", query, k_pool[slots].double().repeat_interleave(group, 1)))
                values.append(v_pool[slots].double().repeat_interleave(group, 1))
            found = torch.cat(scores, 1) * scale
            if found.shape[1]:
                result = torch.einsum("hn,nhd->hd", found.softmax(1), torch.cat(values)), found.logsumexp(1)
                parts.setdefault(token, []).append(result)
    for token, results in parts.items():
        weights = torch.stack([lse for _, lse in results]).softmax(0)
        merged = sum(part * weight[:, None] for (part, _), weight in zip(results, weights, strict=True))
        out[token] = merged.to(out.dtype)  # type: ignore[union-attr]
