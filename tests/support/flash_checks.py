"""Random attention plans with what each row sees, and what a FlashAttention backend must give for them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laban.kernels.flash import FlashPlan, attend_flash
from laban.kernels.flash_backends import FlashBackend, cumulated, varlen_reference
from laban.kernels.rotary import turn_tables
from laban.kernels.row_attention import RowReads
from laban.kernels.view_attention import AttentionPlan, Index, StackedTile, attend, attend_reference

KV_HEADS = 2
# What rounding the inputs of a dot product of 64 to 256 unit normals once more, and a weight, may cost.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class PlanCase:
    """A plan under construction: `blocks` of new tokens, `tiles` of (members, slots), a member (block, offset)."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    blocks: list[list[int]]  # the slots of each; a block of one token is a single row
    tiles: list[tuple[list[tuple[int, int]], list[int]]]
    row_reads: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)  # block -> (first, length, offset)

    @property
    def inv_freq(self) -> Tensor:
        return 1.0 / 10_000 ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)

    @property
    def firsts(self) -> list[int]:
        return [sum(map(len, self.blocks[:b])) for b in range(len(self.blocks))]

    @property
    def slots(self) -> list[int]:
        return [slot for block in self.blocks for slot in block]

    def sees(self) -> list[list[tuple[int, int]]]:
        seen = [[(slot, 0) for slot in block[: i + 1]] for block in self.blocks for i in range(len(block))]
        for members, slots in self.tiles:
            for b, offset in members:
                for row in range(self.firsts[b], self.firsts[b] + len(self.blocks[b])):
                    seen[row] += [(slot, offset) for slot in slots]
        for b, runs in self.row_reads.items():
            seen[self.firsts[b]] += [
                (s, offset) for first, length, offset in runs for s in range(first, first + length)
            ]
        return seen

    def plan(self) -> AttentionPlan:
        num_tokens, turned, offsets, owners, stacked = len(self.slots), [], [], [], []
        for members, slots in self.tiles:
            rows = []
            for b, offset in members:
                own = list(range(self.firsts[b], self.firsts[b] + len(self.blocks[b])))
                owners += own
                if offset:
                    rows += range(num_tokens + len(turned), num_tokens + len(turned) + len(own))
                    turned += own
                    offsets += [offset] * len(own)
                else:
                    rows += own
            stacked.append(StackedTile(self._index(rows), self._index(slots)))
        long = [b for b, block in enumerate(self.blocks) if len(block) > 1]
        single = [b for b, block in enumerate(self.blocks) if len(block) == 1]
        runs = [slice(self.firsts[b], self.firsts[b] + len(self.blocks[b])) for b in long]
        owners = [t for run in runs for t in range(run.start, run.stop)] + owners + [self.firsts[b] for b in single]
        cos, sin = self._tables(offsets)
        return AttentionPlan(
            num_tokens=num_tokens,
            turned=self._tensor(turned) if turned else None,
            turn_cos=cos if turned else None,
            turn_sin=sin if turned else None,
            causal=tuple(runs),
            stacked=tuple(stacked),
            masked=(),
            rows=self._rows(single) if single else None,
            owners=self._tensor(owners),
            in_order=owners == list(range(num_tokens)),
        )

    def _rows(self, single: list[int]) -> RowReads:
        per_row = [[(self.blocks[b][0], 1, 0), *self.row_reads.get(b, [])] for b in single]
        runs = [run for row in per_row for run in row]
        cos, sin = self._tables([offset for *_, offset in runs])
        return RowReads(
            self._tensor([self.firsts[b] for b in single]),
            self._tensor([sum(map(len, per_row[:i])) for i in range(len(per_row) + 1)]),
            self._tensor([first for first, _, _ in runs]),
            self._tensor([length for _, length, _ in runs]),
            self._tensor([i if offset else -1 for i, (*_, offset) in enumerate(runs)]),
            cos,
            sin,
        )

    def _tables(self, offsets: list[int]) -> tuple[Tensor, Tensor]:
        cos, sin = turn_tables(torch.tensor(offsets, dtype=torch.int64), self.inv_freq, self.dtype)
        return cos.to(self.device), sin.to(self.device)

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _index(self, numbers: list[int]) -> Index:
        follow = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        return slice(numbers[0], numbers[-1] + 1) if follow else self._tensor(numbers)


def random_case(seed: int, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[PlanCase, int]:
    """And how many slots its pool has."""
    draw = random.Random(seed)
    sizes = [draw.choice([1, 1, 2, 9, 40]) for _ in range(draw.choice([1, 1, 3, 5]))]
    messages = [draw.choice([1, 30, 130, 300]) for _ in range(draw.randrange(4))]
    num_slots = sum(sizes) + sum(messages) + 50
    free = list(range(num_slots))
    if draw.random() < 0.5:
        draw.shuffle(free)
    taken = iter(free)
    blocks = [[next(taken) for _ in range(size)] for size in sizes]
    tiles = []
    for size in messages:
        readers = draw.sample(range(len(blocks)), draw.randrange(1, len(blocks) + 1))
        members = [(b, draw.choice([0, 0, 5, -3, 400])) for b in readers]
        tiles.append((members, [next(taken) for _ in range(size)]))
    left = next(taken)
    reads = {b: [(left, 1, draw.choice([0, 70]))] for b, size in enumerate(sizes) if size == 1 and draw.random() < 0.5}
    return PlanCase(device, dtype, head_dim, blocks, tiles, reads), num_slots


def check_plan(backend: FlashBackend, case: PlanCase, num_slots: int, group: int) -> None:
    """Against the definition in float64, with every slot that no row sees poisoned."""
    heads, dim = group * KV_HEADS, case.head_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape).to(case.device, case.dtype)

    sees, slots, plan = case.sees(), case.slots, case.plan()
    q, k, v = normal(len(slots), heads, dim), normal(len(slots), KV_HEADS, dim), normal(len(slots), KV_HEADS, dim)
    k_pool = torch.full((num_slots, KV_HEADS, dim), torch.nan, device=case.device, dtype=case.dtype)
    v_pool = k_pool.clone()
    visible = sorted({slot for row in sees for slot, _ in row})
    k_pool[visible], v_pool[visible] = normal(len(visible), KV_HEADS, dim), normal(len(visible), KV_HEADS, dim)
    k_pool[slots], v_pool[slots] = k, v
    scale = dim**-0.5
    out = attend_flash(backend, q, k, v, k_pool, v_pool, FlashPlan.of(plan), scale)
    expected = attend_reference(q.cpu(), k_pool.cpu(), v_pool.cpu(), sees, case.inv_freq, scale)
    torch.testing.assert_close(out.double().cpu(), expected, atol=TOLERANCE[case.dtype], rtol=0)
    by_tile = attend(q, k, v, k_pool, v_pool, plan, scale)
    torch.testing.assert_close(out, by_tile, atol=TOLERANCE[case.dtype], rtol=0)


def check_varlen(
    backend: FlashBackend,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    lengths: list[tuple[int, int]],
    causal: bool,
) -> None:
    """Sequences of (queries, keys) against float64. Rows without a key have -inf, and weigh nothing where they go."""
    assert backend.varlen is not None
    total_q, total_k = (sum(pair[i] for pair in lengths) for i in range(2))
    q = torch.randn(total_q, 3 * KV_HEADS, head_dim).to(device, dtype)
    k, v = (torch.randn(total_k, KV_HEADS, head_dim).to(device, dtype) for _ in range(2))
    cu_q, cu_k = (cumulated([pair[i] for pair in lengths], device) for i in range(2))
    given = (cu_q, cu_k, max(n for n, _ in lengths), max(m for _, m in lengths), causal, head_dim**-0.5)
    out, lse = backend.varlen(q, k, v, *given)
    expected, expected_lse = varlen_reference(q.double(), k.double(), v.double(), *given)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=2e-3 if dtype != torch.float32 else 1e-5, rtol=0)
    empty = torch.tensor([m == 0 for n, m in lengths for _ in range(n)], device=device)
    assert bool((lse[empty] == -math.inf).all())
