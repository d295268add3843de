"""Attention of single rows, each over runs of keys that it reads at offsets of their own.

What decoding does: one new token a call, over a handful of messages. Every run is read where it lies and
the query turned on the way, in one softmax a row, so that nothing is gathered and nothing is merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laban.kernels.rotary import turn

try:
    from laban.kernels import row_attention_cpu as compiled
except ImportError:  # numba is not installed, or not for this machine
    compiled = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class RowReads:
    """Row i is token `tokens[i]` over the runs `starts[i]` to `starts[i + 1]`, at least one key in all.

    Run j is the slots `first[j]` to `first[j] + length[j]`, read by the query rotated by `turn_cos` and `turn_sin` of
    `turns[j]`; -1 reads by the query as it is.
    """

    tokens: Tensor  # [num_rows] int64
    starts: Tensor  # [num_rows + 1] int64
    first: Tensor  # [num_runs] int64
    length: Tensor  # [num_runs] int64
    turns: Tensor  # [num_runs] int64
    turn_cos: Tensor  # [num_turns, 1, rotary_dim]
    turn_sin: Tensor  # [num_turns, 1, rotary_dim]

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]


def has_compiled_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for single rows, fast enough that any number of keys belongs there."""
    return compiled is not None and device.type == "cpu" and dtype == torch.float32


def attend_rows(q: Tensor, k_pool: Tensor, v_pool: Tensor, reads: RowReads, scale: float) -> tuple[Tensor, Tensor]:
    """Reads each row's keys and values once: bytes = 2 * num_keys * num_kv_heads * head_dim * itemsize.

    Args:
        q: [num_tokens, num_heads, head_dim] rotated for the tokens' own positions.
        k_pool, v_pool: [num_slots, num_kv_heads, head_dim].

    Returns:
        [num_rows, num_heads, head_dim] and its log-sum-exp, float32 [num_rows, num_heads].
    """
    if not has_compiled_rows(q.device, q.dtype):
        return attend_rows_reference(q, k_pool, v_pool, reads, scale)
    out = q.new_empty(reads.num_rows, *q.shape[1:])
    lse = q.new_empty(reads.num_rows, q.shape[1])
    num_kv_heads, head_dim = k_pool.shape[1:]
    compiled.make_fill_rows(num_kv_heads, q.shape[1] // num_kv_heads, head_dim)(
        *(x.numpy() for x in (q.contiguous(), k_pool, v_pool, reads.tokens, reads.starts, reads.first, reads.length)),
        *(x.numpy() for x in (reads.turns, reads.turn_cos, reads.turn_sin, out, lse)),
        scale,
    )
    return out, lse


def compile_rows(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Compiles the kernel now, which takes some seconds the first time, and not in the middle of a call."""
    q, pool, one = torch.zeros(1, num_heads, head_dim), torch.zeros(1, num_kv_heads, head_dim), torch.ones(1).long()
    no_turns = q.new_empty(0, 1, head_dim)
    attend_rows(q, pool, pool, RowReads(one - 1, torch.tensor([0, 1]), one - 1, one, -one, no_turns, no_turns), 1.0)


def attend_rows_reference(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, reads: RowReads, scale: float
) -> tuple[Tensor, Tensor]:
    """The same in plain torch: gathers every key and value that is read, with its query."""
    num_rows, (num_heads, head_dim) = reads.num_rows, q.shape[1:]
    group = num_heads // k_pool.shape[1]
    row_of_run = torch.arange(num_rows, device=q.device).repeat_interleave(reads.starts.diff())
    row_of_key = row_of_run.repeat_interleave(reads.length)
    # The slots of run j are first[j] + 0, 1, ...: a count over all keys, less what came before the run.
    before = reads.length.cumsum(0) - reads.length
    slots = torch.arange(row_of_key.shape[0], device=q.device) + (reads.first - before).repeat_interleave(reads.length)
    queries = q[reads.tokens[row_of_run]]
    if reads.turn_cos.shape[0]:
        turned = turn(queries, reads.turn_cos[reads.turns], reads.turn_sin[reads.turns])  # -1 takes any: not used
        queries = torch.where(reads.turns[:, None, None] < 0, queries, turned)
    keys = k_pool[slots].repeat_interleave(group, dim=1)
    scores = (queries.repeat_interleave(reads.length, dim=0) * keys).sum(-1, dtype=torch.float32) * scale
    index = row_of_key[:, None].expand(-1, num_heads)
    highest = scores.new_full((num_rows, num_heads), -torch.inf).scatter_reduce_(0, index, scores, "amax")
    weights = torch.exp(scores - highest[row_of_key])
    total = scores.new_zeros(num_rows, num_heads).index_add_(0, row_of_key, weights)
    weighted = v_pool[slots].repeat_interleave(group, dim=1).float() * weights[..., None]
    summed = scores.new_zeros(num_rows, num_heads, head_dim).index_add_(0, row_of_key, weighted)
    return (summed / total[..., None]).to(q.dtype), highest + total.log()
