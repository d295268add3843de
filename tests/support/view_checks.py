"""Random batches of rows over views, what each row sees by definition, and checks of plans and kernels against it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laban.kernels.plan_layout import NUM_TURNED
from laban.kernels.rotary import turn, turn_tables
from laban.kernels.view_plan import PlanShape, build_plan
from laban.kernels.view_tiles import Scratch, Tile

# Of the largest value of a result whose rounding to `dtype` is part of the error.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass
class Batch:
    """The planner's input, and for each token what it sees: (slot, offset) of every key."""

    chunks: np.ndarray
    reads: np.ndarray
    page_starts: np.ndarray
    pages: np.ndarray
    page_size: int
    sees: list[list[tuple[int, int]]]

    @property
    def num_tokens(self) -> int:
        return len(self.sees)

    @property
    def num_slots(self) -> int:
        return self.page_size * (int(self.pages.max()) + 2)


def random_batch(
    draw: random.Random,
    *,
    page_size: int = 16,
    window: int | None = None,
    counts: tuple[int, ...] = (1, 1, 1, 1, 5, 40),
    lengths: tuple[int, ...] = (1, 5, 63, 64, 90, 200),
    num_chunks: int = 6,
    num_messages: int = 4,
    max_reads: int = 5,
    same_readers: bool = False,
) -> Batch:
    """Chunks of `counts` new tokens that read messages of `lengths` in orders and at places of their own."""
    messages = [(draw.choice(lengths), draw.choice([0, 3, 500])) for _ in range(num_messages)]  # tokens, start
    sizes = [tokens for tokens, _ in messages]
    chunks, reads, sees = [], [], []
    for c in range(num_chunks):
        count, begin = draw.choice(counts), draw.choice([0, 0, 1, 20, 100])
        wanted = list(range(num_messages)) * (1 if same_readers else 2)
        draw.shuffle(wanted)
        at = draw.choice([0, 7])
        for which in wanted if same_readers else wanted[: draw.randrange(max_reads + 1)]:
            first = 0 if same_readers or draw.random() < 0.7 else draw.randrange(sizes[which])
            offset = at - messages[which][1] - first if draw.random() < 0.8 else draw.choice([0, -3, 4000])
            reads.append([c, which, first, sizes[which], offset, messages[which][1]])
            at += sizes[which] - first
        start = at + draw.choice([0, 0, 5])
        chunks.append([len(sees), count, start + begin, len(sizes), begin, start])
        sizes.append(begin + count)
        sees += [[] for _ in range(count)]
    numbers = list(range(sum(-(-n // page_size) for n in sizes) + 5))
    draw.shuffle(numbers)
    page_starts = np.cumsum([0, *(-(-n // page_size) for n in sizes)])
    pages = np.array(numbers[: page_starts[-1]], np.int32)

    def slot(entry: int, index: int) -> int:
        return int(pages[page_starts[entry] + index // page_size]) * page_size + index % page_size

    for c, (first_row, count, position, own, begin, start) in enumerate(chunks):
        for i in range(count):
            keys = [(e, t, o, s) for r, e, b, end, o, s in reads if r == c for t in range(b, end)]
            keys += [(own, t, 0, start) for t in range(begin + i + 1)]
            near = [k for k in keys if window is None or position + i - (k[3] + k[2] + k[1]) < window]
            sees[first_row + i] = [(slot(e, t), o) for e, t, o, _ in near]
    as_array = np.array(reads, np.int64).reshape(-1, 6)
    return Batch(np.array(chunks, np.int64), as_array, page_starts, pages, page_size, sees)


@dataclass
class Planned:
    plan: np.ndarray
    own: np.ndarray
    num_partials: int


def planned(batch: Batch, shape: PlanShape) -> Planned:
    plan, own = np.full(shape.size, -7, np.int32), np.zeros(len(batch.chunks), np.int64)
    count = build_plan(shape, batch.chunks, batch.reads, batch.page_starts, batch.pages, plan, own)
    return Planned(plan, own, count)


@dataclass
class Tensors:
    """Random queries, and pools that hold numbers where some row sees a key and nothing but NaN elsewhere."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    inv_freq: Tensor
    expected: Tensor  # [num_tokens, num_heads, head_dim] float64, on the CPU

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)


def random_tensors(
    batch: Batch, seed: int, *, group: int, kv_heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype,
    device: str = "cpu",
) -> Tensors:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    q = normal(batch.num_tokens, group * kv_heads, head_dim)
    k_pool = torch.full((batch.num_slots, kv_heads, head_dim), torch.nan, dtype=dtype)
    v_pool = k_pool.clone()
    # Everything that a chunk's last row may see is written by the time that any row attends.
    visible = sorted({s for row in batch.sees for s, _ in row} | set(_written(batch)))
    k_pool[visible], v_pool[visible] = (
        normal(len(visible), kv_heads, head_dim),
        normal(len(visible), kv_heads, head_dim),
    )
    inv_freq = 1.0 / 10_000 ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)
    q, k_pool, v_pool = q.to(device), k_pool.to(device), v_pool.to(device)
    expected = attend_by_definition(q, k_pool, v_pool, batch.sees, inv_freq, head_dim**-0.5)
    return Tensors(q, k_pool, v_pool, inv_freq, expected.cpu())


def _written(batch: Batch) -> list[int]:
    slots = []
    sizes = [0] * (len(batch.page_starts) - 1)
    for _, entry, _, end, _, _ in batch.reads:
        sizes[entry] = max(sizes[entry], end)
    for _, count, _, own, begin, _ in batch.chunks:
        sizes[own] = begin + count
    for entry, size in enumerate(sizes):
        pages = batch.pages[batch.page_starts[entry] :]
        slots += [int(pages[t // batch.page_size]) * batch.page_size + t % batch.page_size for t in range(size)]
    return slots


def attend_by_definition(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, sees: list[list[tuple[int, int]]], inv_freq: Tensor, scale: float
) -> Tensor:
    """Row by row in float64: keys moved to where the row reads them. [num_tokens, num_heads, head_dim]"""
    group = q.shape[1] // k_pool.shape[1]
    rows = []
    for query, seen in zip(q.double(), sees, strict=True):
        slots, offsets = torch.tensor(seen).T
        cos, sin = (x.to(q.device) for x in turn_tables(-offsets, inv_freq, torch.float64))
        slots = slots.to(q.device)
        keys = turn(k_pool[slots].double(), cos, sin).repeat_interleave(group, 1)
        weights = torch.softmax(torch.einsum("hd,nhd->hn", query, keys) * scale, -1)
        rows.append(torch.einsum("hn,nhd->hd", weights, v_pool[slots].double().repeat_interleave(group, 1)))
    return torch.stack(rows)


def run_kernel(batch: Batch, x: Tensors, shape: PlanShape, tile: Tile) -> Tensor:
    """The fused kernel's result, poisoned before it is written."""
    from laban.kernels.view_kernel import attend_views

    device = x.q.device
    made = planned(batch, shape)
    plan = torch.from_numpy(made.plan).to(device)
    positions, tokens = torch.from_numpy(made.plan[8:][: 2 * shape.max_turned].astype("int64")).view(2, -1)
    count = made.plan[NUM_TURNED]
    of_token = torch.from_numpy(np.concatenate([c[2] + np.arange(c[1]) for c in batch.chunks]))
    offsets = of_token[tokens[:count]] - positions[:count]
    cos, sin = (table.to(device) for table in turn_tables(offsets, x.inv_freq, torch.float32))
    turned = turn(x.q[tokens[:count].to(device)].float(), cos, sin).to(x.q.dtype)
    scratch = Scratch.empty(shape.max_partials, *x.q.shape[1:], device)
    scratch.out.fill_(torch.nan)
    scratch.lse.fill_(torch.nan)
    out = torch.full_like(x.q, torch.nan)
    q = torch.cat((x.q, turned))
    attend_views(q, len(x.q), x.k_pool, x.v_pool, plan, scratch, shape, tile, x.scale, out)
    return out.double().cpu()


def assert_close(found: Tensor, x: Tensors) -> None:
    torch.testing.assert_close(found, x.expected, atol=TOLERANCE[x.q.dtype], rtol=0)
