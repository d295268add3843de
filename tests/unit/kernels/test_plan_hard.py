"""Plans at their edges: page sizes, groups, many rounds of `advance`, batches that are too large, and poison."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from view_checks import Batch, assert_close, planned, random_batch, random_tensors, run_kernel

from laban.kernels.plan_layout import HEADER, ITEM_INTS, NUM_ITEMS, PIECE_INTS
from laban.kernels.view_plan import PlanFull, PlanShape, advance, build_plan
from laban.kernels.view_reference import attend_views_reference
from laban.kernels.view_tiles import Tile

SMALL = {"max_turned": 1024, "max_items": 512, "max_tokens": 128, "max_partials": 2048, "size": 1 << 16}


def random_shape(draw: random.Random, page_size: int, window: int | None) -> PlanShape:
    return PlanShape(
        rows_per_tile=draw.choice([1, 2, 5, 16]),
        keys_per_block=draw.choice([16, 32, 64]),
        num_kv_heads=draw.choice([1, 3, 8]),
        num_programs=draw.choice([1, 3, 132]),
        page_size=page_size,
        window=window,
        min_shared_tokens=draw.choice([1, 17, 64]),
        **SMALL,
    )


@pytest.mark.parametrize("seed", range(24))
def test_page_sizes_and_windows_at_their_edges(seed: int) -> None:
    draw = random.Random(seed)
    page_size, window = draw.choice([1, 3, 4, 1024]), draw.choice([None, 1, 4, 16, 17])
    batch = random_batch(
        draw, page_size=page_size, window=window, counts=(1, 1, 2, 9), num_chunks=draw.choice([1, 9]),
        same_readers=draw.random() < 0.3,
    )  # fmt: skip
    shape = random_shape(draw, page_size, window)
    x = random_tensors(batch, seed, group=3, kv_heads=1, head_dim=8, rotary_dim=8, dtype=torch.float32)
    out = torch.full_like(x.q, torch.nan)
    attend_views_reference(x.q, x.k_pool, x.v_pool, planned(batch, shape).plan, x.inv_freq, shape, x.scale, out)
    assert_close(out.double(), x)


def with_spare_pages(draw: random.Random, batch: Batch) -> Batch:
    """Up to three more pages for each chunk's own entry; nowhere more pages listed than the engine does."""
    lists = [batch.pages[a:b] for a, b in zip(batch.page_starts, batch.page_starts[1:], strict=False)]
    spare = iter(range(int(batch.pages.max()) + 1, int(batch.pages.max()) + 1000))
    for own_entry in batch.chunks[:, 3]:
        more = [next(spare) for _ in range(draw.randrange(4))]
        lists[own_entry] = np.append(lists[own_entry], more).astype(np.int32)
    pages, starts = np.concatenate(lists), np.cumsum([0, *map(len, lists)])
    return replace(batch, pages=pages, page_starts=starts)


@pytest.mark.parametrize("seed", range(24))
def test_an_advanced_plan_gives_what_a_new_one_gives(seed: int) -> None:
    draw = random.Random(seed)
    page_size, window = draw.choice([1, 4, 16]), draw.choice([None, 1, 6, 40])
    batch = random_batch(
        draw, page_size=page_size, window=window, counts=(1,), num_chunks=draw.choice([1, 3, 8]),
        same_readers=draw.random() < 0.5,
    )  # fmt: skip
    batch = with_spare_pages(draw, batch)
    shape = random_shape(draw, page_size, window)
    made = planned(batch, shape)
    slots = (int(batch.pages.max()) + 1) * page_size
    generator = torch.Generator().manual_seed(seed)
    k_pool, v_pool = (torch.randn(slots, 1, 8, generator=generator) for _ in range(2))
    inv_freq = torch.rand(4, generator=generator)
    for _ in range(2 * page_size + 2):
        before = made.plan.copy(), made.own.copy()
        if not advance(shape, made.plan, made.own):
            assert np.array_equal(made.plan, before[0])
            assert np.array_equal(made.own, before[1])
            break
        batch.chunks[:, [2, 4]] += 1  # position, index in the message
        q = torch.randn(batch.num_tokens, 2, 8, generator=generator)
        results = []
        for of, plan in ((shape, made.plan), (replace(shape, rows_per_tile=1), None)):
            plan = planned(batch, of).plan if plan is None else plan
            out = torch.full_like(q, torch.nan)
            attend_views_reference(q, k_pool, v_pool, plan, inv_freq, of, 0.3, out)
            results.append(out)
        torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_that_fits_stays_within_its_limits(seed: int) -> None:
    """Whatever the limits: refused, or every index points into what there is room for, and nothing else is written."""
    draw = random.Random(seed)
    page_size, window = draw.choice([1, 16]), draw.choice([None, 30])
    batch = random_batch(draw, page_size=page_size, window=window, num_chunks=12, counts=(1, 1, 3, 20))
    limits = {
        "max_turned": draw.choice([8, 60, 400]),
        "max_items": draw.choice([4, 20, 200]),
        "max_tokens": draw.choice([12, 100, 300]),
        "max_partials": draw.choice([10, 200, 2000]),
    }
    shape = replace(random_shape(draw, page_size, window), **limits)
    shape = replace(shape, size=shape.rest_at + draw.choice([50, 400, 1000, 3000, 9000, 30_000]))
    guard = np.full(shape.size + 64, 12345, np.int32)
    own = np.zeros(len(batch.chunks), np.int64)
    plan = guard[: shape.size]
    try:
        num_partials = build_plan(shape, batch.chunks, batch.reads, batch.page_starts, batch.pages, plan, own)
    except PlanFull:
        assert (guard[shape.size :] == 12345).all()
        return
    assert (guard[shape.size :] == 12345).all()
    assert num_partials <= shape.max_partials
    num_items = int(plan[NUM_ITEMS])
    assert num_items <= shape.max_items
    items = plan[shape.items_at :][: ITEM_INTS * num_items].reshape(-1, ITEM_INTS)
    partial_rows = []
    for first_row, num_rows, first_piece, num_pieces, first_partial, _ in items.tolist():
        assert shape.rest_at <= first_row < shape.size
        assert 1 <= num_rows <= shape.rows_per_tile
        assert num_pieces >= 1
        partial_rows += range(first_partial, first_partial + num_rows) if first_partial >= 0 else []
        for at, begin, end, first_turned, _, _ in plan[first_piece:][: PIECE_INTS * num_pieces].reshape(-1, 6).tolist():
            assert shape.rest_at <= at < shape.size
            assert 0 <= begin < end
            assert first_turned < shape.max_turned
    assert partial_rows == list(range(num_partials))
    merged = plan[shape.merge_at : shape.merge_at + shape.max_tokens + 1]
    assert (np.diff(merged) >= 0).all()
    assert sorted(plan[merged[0] : merged[-1]].tolist()) == partial_rows, "each is merged once"
    assert (plan[HEADER + shape.max_turned :][: plan[1]] < batch.num_tokens).all()


@pytest.mark.skipif(torch.cuda.is_available() or find_spec("triton") is None, reason="in Triton's interpreter")
def test_one_call_s_poison_is_not_its_neighbours() -> None:
    """Two decodes share a tile over their own messages; one has a value that is no number."""
    chunks = np.array([[0, 1, 19, 0, 19, 0], [1, 1, 19, 1, 19, 0]], np.int64)
    first, second = ([(16 * page + i, 0) for page in pages for i in range(16)][:20] for pages in ((0, 2), (1, 3)))
    no_reads = np.empty((0, 6), np.int64)
    batch = Batch(chunks, no_reads, np.array([0, 2, 4]), np.array([0, 2, 1, 3], np.int32), 16, [first, second])
    x = random_tensors(batch, 0, group=2, kv_heads=1, head_dim=16, rotary_dim=16, dtype=torch.float32)
    x.v_pool[second[0][0]] = torch.nan
    shape = PlanShape(8, 32, 1, 6, 16, min_shared_tokens=16, **SMALL)
    out = run_kernel(batch, x, shape, Tile(16, 32, 4, 1, 1))
    torch.testing.assert_close(out[0], x.expected[0], atol=2e-5, rtol=0)
    assert not out[1].isfinite().all()
