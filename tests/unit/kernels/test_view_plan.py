"""Plans against the row-by-row definition: whatever is stacked, cut or merged, every row sees its keys once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from view_checks import Batch, Tensors, assert_close, planned, random_batch, random_tensors

from laban.kernels.plan_layout import ITEM_INTS, NUM_ITEMS, NUM_PARTIALS, PACKED
from laban.kernels.view_plan import PlanFull, PlanShape, advance, build_plan
from laban.kernels.view_reference import attend_views_reference

pytestmark = pytest.mark.slow

SMALL = {"max_turned": 2048, "max_items": 512, "max_tokens": 256, "max_partials": 2048, "size": 1 << 16}


def interpreted(batch: Batch, shape: PlanShape, x: Tensors) -> torch.Tensor:
    out = torch.full_like(x.q, torch.nan)
    attend_views_reference(x.q, x.k_pool, x.v_pool, planned(batch, shape).plan, x.inv_freq, shape, x.scale, out)
    return out.double()


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_the_definition(seed: int) -> None:
    draw = random.Random(seed)
    window = draw.choice([None, None, 1, 30, 150])
    page_size = draw.choice([4, 16])
    batch = random_batch(draw, page_size=page_size, window=window, same_readers=draw.random() < 0.3)
    shape = PlanShape(
        rows_per_tile=draw.choice([1, 4, 16]),
        keys_per_block=draw.choice([16, 64]),
        num_kv_heads=2,
        num_programs=draw.choice([1, 8, 264]),
        page_size=page_size,
        window=window,
        min_shared_tokens=draw.choice([1, 64]),
        **SMALL,
    )
    x = random_tensors(batch, seed, group=2, kv_heads=1, head_dim=8, rotary_dim=8, dtype=torch.float32)
    assert_close(interpreted(batch, shape, x), x)


def keys_read(plan: np.ndarray, shape: PlanShape) -> int:
    """Keys of encodings that the items read, each as often as an item reads it."""
    total = 0
    for i in range(plan[NUM_ITEMS]):
        _, _, piece, count, _, _ = plan[shape.items_at + ITEM_INTS * i :][:ITEM_INTS]
        pieces = plan[piece:][: 6 * count].reshape(-1, 6)
        total += sum(end - begin for _, begin, end, _, _, kind in pieces if kind != PACKED)
    return int(total)


def many_readers(num_calls: int, num_messages: int, tokens: int) -> tuple[np.ndarray, ...]:
    """Decodes of `num_calls` calls, each over all messages in an order of its own."""
    draw = random.Random(1)
    chunks = np.array([[c, 1, 10_000, num_messages + c, 3, 9997] for c in range(num_calls)], np.int64)
    reads = []
    for c in range(num_calls):
        for place, message in enumerate(draw.sample(range(num_messages), num_messages)):
            reads.append([c, message, 0, tokens, place * tokens, 0])
    pages_each = -(-tokens // 16)
    page_starts = np.arange(num_messages + num_calls + 1) * pages_each
    return chunks, np.array(reads, np.int64), page_starts, np.arange(page_starts[-1], dtype=np.int32)


def test_shared_messages_are_read_once() -> None:
    shape = PlanShape(rows_per_tile=16, keys_per_block=64, num_kv_heads=8, num_programs=264, page_size=16)
    plan, own = np.zeros(shape.size, np.int32), np.zeros(16, np.int64)
    build_plan(shape, *many_readers(16, 8, 1024), plan, own)
    assert keys_read(plan, shape) == 8 * 1024
    # However short each is: what counts is all that the same readers have in common.
    build_plan(shape, *many_readers(16, 200, 30), plan, own)
    assert keys_read(plan, shape) == 200 * 30
    # Too little of it is read by each call: the partial results would cost more than they save.
    build_plan(shape, *many_readers(16, 2, 30), plan, own)
    assert keys_read(plan, shape) == 16 * 2 * 30


def test_items_fill_the_card_and_are_of_equal_work() -> None:
    shape = PlanShape(rows_per_tile=4, keys_per_block=64, num_kv_heads=8, num_programs=264, page_size=16)
    plan, own = np.zeros(shape.size, np.int32), np.zeros(1, np.int64)
    build_plan(shape, *many_readers(1, 8, 1024), plan, own)
    assert 132 <= 8 * plan[NUM_ITEMS] <= 264
    assert plan[NUM_PARTIALS] == plan[NUM_ITEMS]


def test_advancing_is_building_anew() -> None:
    draw = random.Random(3)
    batch = random_batch(draw, counts=(1,), num_chunks=5, same_readers=True)
    # Room for the tokens to come: two more pages at the end of each chunk's own entry.
    lists = [batch.pages[a:b] for a, b in zip(batch.page_starts, batch.page_starts[1:], strict=False)]
    spare = iter(range(int(batch.pages.max()) + 1, int(batch.pages.max()) + 100))
    for own_entry in batch.chunks[:, 3]:
        lists[own_entry] = np.append(lists[own_entry], [next(spare), next(spare)]).astype(np.int32)
    batch.pages, batch.page_starts = np.concatenate(lists), np.cumsum([0, *map(len, lists)])
    shape = PlanShape(rows_per_tile=4, keys_per_block=16, num_kv_heads=1, num_programs=8, page_size=16, **SMALL)
    made = planned(batch, shape)
    steps = 0
    while advance(shape, made.plan, made.own):
        batch.chunks[:, [2, 4]] += 1  # position, index in the message
        steps += 1
    assert steps >= 16, "a page in reserve lasts a page's tokens"
    slots = (int(batch.pages.max()) + 1) * 16
    q, k_pool, v_pool = torch.randn(5, 2, 8), torch.randn(slots, 1, 8), torch.randn(slots, 1, 8)
    inv_freq, results = torch.rand(4), []
    for plan in (made.plan, planned(batch, shape).plan):
        out = torch.full_like(q, torch.nan)
        attend_views_reference(q, k_pool, v_pool, plan, inv_freq, shape, 0.3, out)
        results.append(out)
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def test_a_batch_that_does_not_fit_is_refused() -> None:
    shape = PlanShape(rows_per_tile=16, keys_per_block=64, num_kv_heads=8, num_programs=264, page_size=16)
    for less in (
        {"max_turned": 16},
        {"max_items": 2},
        {"size": shape.rest_at + 40},
        {"max_partials": 5},
        {"max_tokens": 4},
    ):
        small = PlanShape(16, 64, 8, 264, 16, **{"max_tokens": 64, **less})
        plan, own = np.zeros(small.size, np.int32), np.zeros(16, np.int64)
        with pytest.raises(PlanFull):
            build_plan(small, *many_readers(16, 8, 100), plan, own)
