"""Attention over views by a stock FlashAttention: one call for a plan's runs, one for its tiles.

The alternative to the fused kernel, for large prefills. No FlashAttention pages at our page size, so the tiles'
queries, keys and values are gathered, once a layer each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from laban.kernels.flash_backends import MIN_RUN_TOKENS, FlashBackend, Varlen, cumulated
from laban.kernels.rotary import turn
from laban.kernels.row_attention import attend_rows
from laban.kernels.view_attention import AttentionPlan, Index, attend, merge


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences laid end to end. Sequence i's queries are the rows cu_q[i] to cu_q[i + 1] of what `queries` takes."""

    queries: Index
    keys: Index
    cu_q: Tensor  # [num_sequences + 1] int32
    cu_k: Tensor
    max_q: int
    max_k: int


@dataclass(frozen=True, slots=True)
class FlashPlan:
    """A plan with its indices for varlen calls: made once an iteration, used by every layer."""

    plan: AttentionPlan
    causal: Packed | None
    stacked: Packed | None

    @staticmethod
    def of(plan: AttentionPlan) -> FlashPlan:
        """On the plan's device, for which the host does not wait."""
        device = plan.owners.device
        tiles = plan.stacked
        return FlashPlan(
            plan,
            _pack(plan.causal, plan.causal, device) if plan.causal else None,
            _pack([tile.rows for tile in tiles], [tile.slots for tile in tiles], device) if tiles else None,
        )


def attend_flash(
    backend: FlashBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    flash_plan: FlashPlan,
    scale: float,
) -> Tensor:
    """What `attend` computes, with its arguments. Layers with a window are left to it.

    Bytes besides the calls' own: 3 times each stacked tile's keys and values (read, written, read), and the turned
    queries.
    """
    plan = flash_plan.plan
    if backend.varlen is None or plan.masked:
        return attend(q, k, v, k_pool, v_pool, plan, scale)
    parts: list[tuple[Tensor, Tensor]] = []
    if (packed := flash_plan.causal) is not None:
        if backend.causal_run is not None and packed.max_q >= MIN_RUN_TOKENS:
            parts += [backend.causal_run(q[run], k[run], v[run], scale) for run in plan.causal]
        else:
            parts.append(_call(backend.varlen, packed, q, k, v, True, scale))
    if (packed := flash_plan.stacked) is not None:
        queries = q
        if plan.turned is not None:
            assert plan.turn_cos is not None
            assert plan.turn_sin is not None
            queries = torch.cat((q, turn(q.index_select(0, plan.turned), plan.turn_cos, plan.turn_sin)))
        parts.append(_call(backend.varlen, packed, queries, k_pool, v_pool, False, scale))
    if plan.rows is not None:
        parts.append(attend_rows(q, k_pool, v_pool, plan.rows, scale))
    out, lse = parts[0] if len(parts) == 1 else (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    return out if plan.in_order else merge(out, lse, plan.owners, plan.num_tokens)


def _call(
    varlen: Varlen, packed: Packed, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    queries, keys, values = _take(q, packed.queries), _take(k, packed.keys), _take(v, packed.keys)
    return varlen(queries, keys, values, packed.cu_q, packed.cu_k, packed.max_q, packed.max_k, causal, scale)


def _take(x: Tensor, index: Index) -> Tensor:
    return x[index] if isinstance(index, slice) else x.index_select(0, index)


def _pack(queries: Sequence[Index], keys: Sequence[Index], device: torch.device) -> Packed:
    lengths_q, lengths_k = [_length(index) for index in queries], [_length(index) for index in keys]
    joined_q = _joined(queries, device)
    return Packed(
        joined_q,
        joined_q if keys is queries else _joined(keys, device),
        cumulated(lengths_q, device),
        cumulated(lengths_k, device),
        max(lengths_q),
        max(lengths_k),
    )


def _length(index: Index) -> int:
    return index.stop - index.start if isinstance(index, slice) else index.shape[0]


def _joined(indices: Sequence[Index], device: torch.device) -> Index:
    """All of them, one after another; a slice if they are one."""
    slices = [index for index in indices if isinstance(index, slice)]
    if len(slices) == len(indices) and all(a.stop == b.start for a, b in pairwise(slices)):
        return slice(slices[0].start, slices[-1].stop)
    return torch.cat([torch.arange(x.start, x.stop, device=device) if isinstance(x, slice) else x for x in indices])
