"""Attention of many calls over the encodings in their views, each encoding read where it lies.

The work is a list of tiles: a tile is a set of query rows that all see a set of keys whole, or a run of
new tokens that see one another causally. Rows that read an encoding away from its place do so with a
turned query. The tiles' results are merged by log-sum-exp. Readers of one encoding, at whatever offsets,
stack into one tile, so that its keys are read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laban.kernels.rotary import turn, turn_tables
from laban.kernels.row_attention import RowReads, attend_rows

Index = slice | Tensor  # of rows: a slice costs no gather


@dataclass(frozen=True, slots=True)
class StackedTile:
    """Every row of `rows` sees every key of `slots`."""

    rows: Index  # into the queries, then the turned queries
    slots: Index  # into the pool


@dataclass(frozen=True, slots=True)
class MaskedTile:
    """Every row of `rows` sees the keys of `slots` that are not hidden from it, at least one."""

    rows: Index  # into the queries, then the turned queries
    slots: Index  # into the pool
    hidden: Tensor  # [num_rows, num_slots] bool


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One iteration's attention, the same for every layer of a kind.

    Turned query j is query `turned[j]` rotated by (`turn_cos`, `turn_sin`)[j]; tiles number it num_tokens + j.
    `owners` gives, for every row of every tile's result, causal, stacked, masked and rows in order, its token.
    """

    num_tokens: int
    turned: Tensor | None  # [num_turned] int64
    turn_cos: Tensor | None  # [num_turned, 1, rotary_dim]
    turn_sin: Tensor | None
    causal: tuple[slice, ...]  # runs of new tokens; each sees its own run up to itself
    stacked: tuple[StackedTile, ...]
    masked: tuple[MaskedTile, ...]
    rows: RowReads | None
    owners: Tensor  # [num_partials] int64
    in_order: bool  # owners is 0, 1, ... num_tokens - 1: nothing to merge


def attend(
    q: Tensor, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    """Attention of `num_tokens` new tokens over their views and themselves.

    Reads each stacked tile's keys and values once: bytes = 2 * num_keys * num_kv_heads * head_dim * itemsize.

    Args:
        q: [num_tokens, num_heads, head_dim] rotated for the tokens' own positions.
        k, v: [num_tokens, num_kv_heads, head_dim] of the new tokens, already written to the pool.
        k_pool, v_pool: [num_slots, num_kv_heads, head_dim].

    Returns:
        [num_tokens, num_heads, head_dim].
    """
    if plan.turned is not None:
        assert plan.turn_cos is not None
        assert plan.turn_sin is not None
        queries = torch.cat((q, turn(q.index_select(0, plan.turned), plan.turn_cos, plan.turn_sin)))
    else:
        queries = q
    parts = [_causal(q[run], k[run], v[run], scale) for run in plan.causal]
    parts += [
        _stacked(_rows(queries, t.rows), _rows(k_pool, t.slots), _rows(v_pool, t.slots), scale) for t in plan.stacked
    ]
    parts += [
        _masked(_rows(queries, t.rows), _rows(k_pool, t.slots), _rows(v_pool, t.slots), t.hidden, scale)
        for t in plan.masked
    ]
    if plan.rows is not None:
        parts.append(attend_rows(q, k_pool, v_pool, plan.rows, scale))
    if len(parts) == 1:
        out, lse = parts[0]
    else:
        out = torch.cat([part[0] for part in parts])
        lse = torch.cat([part[1] for part in parts])
    if plan.in_order:
        return out
    return merge(out, lse, plan.owners, plan.num_tokens)


def _rows(x: Tensor, index: Index) -> Tensor:
    """x[index], as a view for a slice. `index_select` copies rows several times faster than indexing does."""
    if isinstance(index, slice):
        return x[index]
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


def merge(out: Tensor, lse: Tensor, owners: Tensor, num_tokens: int) -> Tensor:
    """Merges partial attention results by their log-sum-exp. A partial with lse -inf weighs nothing.

    Args:
        out: [num_partials, num_heads, head_dim]; lse: [num_partials, num_heads]; owners: [num_partials] int64.

    Returns:
        [num_tokens, num_heads, head_dim].
    """
    num_heads, head_dim = out.shape[1:]
    index = owners[:, None].expand(-1, num_heads)
    highest = lse.new_full((num_tokens, num_heads), -torch.inf).scatter_reduce_(0, index, lse, "amax")
    weight = torch.exp(lse - highest.index_select(0, owners))
    total = lse.new_zeros(num_tokens, num_heads).index_add_(0, owners, weight)
    # In float32 whatever the model's type: the partials are rounded once already.
    summed = lse.new_zeros(num_tokens, num_heads, head_dim).index_add_(0, owners, out.float() * weight[..., None])
    return (summed / total[..., None]).to(out.dtype)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [n, heads, dim] over k, v [n, kv_heads, dim], each token up to itself -> ([n, heads, dim], [n, heads])."""
    return _join_groups(*_partial(*_split_groups(q, k, v), True, scale))


def _masked(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [n, heads, dim] over k, v [m, kv_heads, dim] less `hidden` [n, m] -> ([n, heads, dim], [n, heads])."""
    q4, k4, v4 = _split_groups(q, k, v)
    if q.device.type != "cpu":  # torch's other flash kernels take no mask
        return _join_groups(*partial_attention_reference(q4, k4, v4, False, scale, hidden))
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[None, None]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return _join_groups(*flash(q4, k4, v4, 0.0, False, attn_mask=mask, scale=scale))


def _split_groups(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One batch row per query head of a group, [group, kv_heads, n, dim], against the same keys."""
    (n, heads, dim), (m, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    k4, v4 = (x.permute(1, 0, 2).expand(group, kv_heads, m, dim) for x in (k, v))
    return q.view(n, kv_heads, group, dim).permute(2, 1, 0, 3), k4, v4


def _join_groups(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """[group, kv_heads, n, dim], [group, kv_heads, n] -> [n, heads, dim], [n, heads]"""
    group, kv_heads, n, dim = out.shape
    heads = group * kv_heads
    return out.permute(2, 1, 0, 3).reshape(n, heads, dim), lse.permute(2, 1, 0).reshape(n, heads)


def _stacked(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [n, heads, dim], all over k, v [m, kv_heads, dim] -> ([n, heads, dim], [n, heads])."""
    n, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    # A group's query heads are just more rows over the same keys: [1, kv_heads, n * group, dim].
    q4 = q.view(n, kv_heads, group, dim).permute(1, 0, 2, 3).reshape(1, kv_heads, n * group, dim)
    out, lse = _partial(q4, k.permute(1, 0, 2)[None], v.permute(1, 0, 2)[None], False, scale)
    out = out.view(kv_heads, n, group, dim).permute(1, 0, 2, 3).reshape(n, heads, dim)
    return out, lse.view(kv_heads, n, group).permute(1, 0, 2).reshape(n, heads)


def _partial(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention with its log-sum-exp: q [b, h, n, d] over k, v [b, h, m, d] -> ([b, h, n, d], float32 [b, h, n])."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return out, lse.contiguous()
    if attention_backend(q.device, q.dtype) == "torch-cuda-flash":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
        return out, lse
    return partial_attention_reference(q, k, v, causal, scale)


def attention_backend(device: torch.device, dtype: torch.dtype) -> str:
    """What computes a tile: torch's FlashAttention, or its definition where that has no kernel."""
    if device.type == "cpu":
        return "torch-cpu-flash"
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        return "torch-cuda-flash"
    return "torch-math"


def partial_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a flash kernel computes, in plain torch: materializes the scores [b, h, n, m] in float32.

    A row from which all of its keys are `hidden` [n, m] has zeros and a log-sum-exp of -inf.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale
    if causal:
        n = q.shape[-2]
        hidden = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
    return torch.matmul(weights.to(v.dtype), v), lse


def attend_reference(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, reads: list[list[tuple[int, int]]], inv_freq: Tensor, scale: float
) -> Tensor:
    """The definition, row by row in float64: row i attends to the slots of `reads[i]`, each moved by its offset.

    Args:
        q: [num_tokens, num_heads, head_dim] rotated for the tokens' own positions.
        reads: for each row, (slot, offset) of every key it sees, its own included.

    Returns:
        [num_tokens, num_heads, head_dim] float64.
    """
    group = q.shape[1] // k_pool.shape[1]
    rows = []
    for query, seen in zip(q.double(), reads, strict=True):
        slots = torch.tensor([slot for slot, _ in seen])
        offsets = torch.tensor([offset for _, offset in seen])
        cos, sin = turn_tables(-offsets, inv_freq, torch.float64)
        keys = turn(k_pool[slots].double(), cos, sin).repeat_interleave(group, dim=1)
        values = v_pool[slots].double().repeat_interleave(group, dim=1)
        weights = torch.softmax(torch.einsum("hd,mhd->hm", query, keys) * scale, dim=-1)
        rows.append(torch.einsum("hm,mhd->hd", weights, values))
    return torch.stack(rows)
