"""Every tile kind against the row-by-row definition in float64, on fresh random inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.actors.engine import batch as batch_module
from laban.actors.engine import blocks as blocks_module
from laban.actors.engine.batch import build_batch
from laban.actors.engine.layers import LayerKind
from laban.actors.engine.sequence import Chunk, Read, Sequence
from laban.kernels import row_attention
from laban.kernels.rotary import turn, turn_tables
from laban.kernels.row_attention import RowReads, attend_rows, attend_rows_reference, has_compiled_rows
from laban.kernels.view_attention import (
    _join_groups,
    _masked,
    _partial,
    _split_groups,
    attend,
    attend_reference,
    merge,
    partial_attention_reference,
)
from laban.kvstore.store import Entry

pytestmark = pytest.mark.slow

PAGE, PAGES, DIM = 4, 400, 16
INV_FREQ = 1.0 / 10_000 ** (torch.arange(0, DIM, 2).float() / DIM)


class Row(NamedTuple):
    """A new token at `position`, and the keys that it sees without a window: (slot, offset, position)."""

    position: int
    keys: list[tuple[int, int, int]]

    def within(self, window: int | None) -> list[tuple[int, int]]:
        return [(slot, offset) for slot, offset, at in self.keys if window is None or self.position - at < window]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Chunk], list[Row], int]:
    """Chunks over scattered entries, their rows, and the query heads of a key head."""
    pages = list(draw(st.permutations(range(PAGES)))) if draw(st.booleans()) else list(range(PAGES))
    starts = st.sampled_from([0, 7, 60, 500])

    def entry(key: str, tokens: int) -> Entry:
        taken, pages[: -(-tokens // PAGE)] = pages[: -(-tokens // PAGE)], []
        return Entry(key, taken, PAGE)

    def keys_of(read: Read) -> list[tuple[int, int, int]]:
        slots = [s for first, n in read.entry.runs(read.begin, read.end) for s in range(first, first + n)]
        return [(slot, read.offset, read.position + i) for i, slot in enumerate(slots)]

    sizes = draw(st.lists(st.integers(1, 180), min_size=1, max_size=4))
    shared = [(entry(f"m{i}", n), n, draw(starts)) for i, n in enumerate(sizes)]
    chunks: list[Chunk] = []
    rows: list[Row] = []
    for i in range(draw(st.integers(1, 6))):
        count, begin = draw(st.sampled_from([1, 1, 1, 2, 9, 30])), draw(st.sampled_from([0, 1, 20, 150]))
        last = chunks[-1] if chunks else None
        if last is not None and draw(st.integers(0, 3)) == 0:  # goes on where the last one ends, and reads all of it
            before, begin = last.sequence, 0
            reads = [*before.reads, Read(before.entry, 0, 0, len(before.tokens), before.start)]
        else:
            placed = st.tuples(st.sampled_from(shared), st.sampled_from([0, 0, 5, -3, 400]), st.booleans())
            reads = [
                Read(source, offset, n // 2 if half else 0, n, start)
                for (source, n, start), offset, half in draw(st.lists(placed, max_size=4))
            ]
        own, start = entry(f"own{i}", begin + count), draw(starts)
        chunks.append(Chunk(Sequence(own, start, [1] * (begin + count), tuple(reads), (), None), begin, count))
        context = [key for read in reads for key in keys_of(read)]
        own_keys = keys_of(Read(own, 0, 0, begin + count, start))
        rows += [Row(start + j, [*context, *own_keys[: j + 1]]) for j in range(begin, begin + count)]
    return chunks, rows, draw(st.sampled_from([1, 2, 4]))


def test_a_window_hides_what_lies_before_it_wherever_that_is() -> None:
    read = Read(Entry("m", [0], PAGE), -3, 0, 1, 0)
    block = blocks_module.Block(0, 1, (read,), [], [blocks_module.Stretch(0, [(PAGE, 1)])])
    (left,) = blocks_module.apply_window([block], 1, 1)
    assert (left.reads, left.partly) == ((), ())


@settings(max_examples=100, deadline=None)
@given(
    case=batches(),
    seed=st.integers(0, 1000),
    windows=st.tuples(st.sampled_from([None, 1, 2, 20, 100, 400, 1000]), st.sampled_from([None, 25, 500])),
    shared=st.sampled_from([1, 1000, batch_module.MIN_SHARED_TOKENS]),
    piece=st.sampled_from([1, 50, batch_module.MIN_SLICE_TOKENS]),
    few=st.sampled_from([1, batch_module.MAX_SLICE_ROWS]),
    windowed=st.sampled_from([3, 8, blocks_module.MAX_WINDOWED_ROWS]),
    row_work=st.sampled_from([0, 500, 1_000_000]),
    compiled=st.booleans(),
)
def test_tiles_compute_the_definition(
    case: tuple[list[Chunk], list[Row], int],
    seed: int,
    windows: tuple[int | None, int | None],
    shared: int,
    piece: int,
    few: int,
    windowed: int,
    row_work: int,
    compiled: bool,
) -> None:
    """Whatever is stacked, sliced, masked or left to single rows: the thresholds decide the speed alone."""
    chunks, rows, group = case
    torch.manual_seed(seed)
    kinds = [LayerKind(INV_FREQ, 1.0, windows[0]), LayerKind(0.3 * INV_FREQ, 1.0, windows[1])]
    sizes = {
        "MIN_SHARED_TOKENS": shared,
        "MIN_SLICE_TOKENS": piece,
        "MAX_SLICE_ROWS": few,
        "ROW_WORK_PER_TILE": row_work,
    }
    with (
        mock.patch.multiple(batch_module, **sizes),
        mock.patch.object(blocks_module, "MAX_WINDOWED_ROWS", windowed),
        mock.patch.object(batch_module, "has_compiled_rows", return_value=compiled),
    ):
        batch = build_batch(chunks, kinds, torch.float32, torch.device("cpu"))
    n = batch.num_tokens
    assert batch.positions.tolist() == [row.position for row in rows]
    for kind, plan in zip(kinds, batch.plans, strict=True):
        sees = [row.within(kind.window) for row in rows]
        q, k, v = torch.randn(n, 2 * group, DIM), torch.randn(n, 2, DIM), torch.randn(n, 2, DIM)
        # What no row may see is no number, and is not to be read.
        k_pool, v_pool = torch.full((PAGE * PAGES, 2, DIM), torch.nan), torch.full((PAGE * PAGES, 2, DIM), torch.nan)
        visible = sorted({slot for row in sees for slot, _ in row})
        k_pool[visible], v_pool[visible] = torch.randn(len(visible), 2, DIM), torch.randn(len(visible), 2, DIM)
        k_pool[batch.write_slots], v_pool[batch.write_slots] = k, v
        with mock.patch.object(row_attention, "has_compiled_rows", return_value=compiled):
            out = attend(q, k, v, k_pool, v_pool, plan, 0.3)
        expected = attend_reference(q, k_pool, v_pool, sees, kind.inv_freq, 0.3)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)


def one_prefill(count: int) -> list[Chunk]:
    """`count` new tokens over 100 that are read where they were encoded."""
    entries = [Entry("m", list(range(25)), PAGE), Entry("own", list(range(25, 25 + count)), PAGE)]
    reads = (Read(entries[0], 0, 0, 100, 0),)
    return [Chunk(Sequence(entries[1], 100, [1] * count, reads, (), None), 0, count)]


def test_kinds_share_what_does_not_differ() -> None:
    kinds = [
        LayerKind(x, 1.0, window) for x in (INV_FREQ, INV_FREQ.clone(), 0.5 * INV_FREQ) for window in (None, 108, 20)
    ]
    plans = build_batch(one_prefill(8), kinds, torch.float32, torch.device("cpu")).plans
    assert len({id(plan) for plan in plans}) == 2  # nothing is turned: the window of 20, and all others
    assert {id(plans[i]) for i in (2, 5, 8)}.isdisjoint(id(plans[i]) for i in (0, 1, 3, 4, 6, 7))
    moved = one_prefill(8)
    reads = (replace(moved[0].sequence.reads[0], offset=30),)
    moved[0].sequence.reads = reads
    plans = build_batch(moved, kinds, torch.float32, torch.device("cpu")).plans
    ids = [id(plan) for plan in plans]
    assert [ids.index(plan_id) for plan_id in ids] == [0, 0, 2, 0, 0, 2, 6, 6, 8]


def test_a_long_chunk_in_a_windowed_layer_is_cut_into_small_tiles() -> None:
    (plan,) = build_batch(one_prefill(2048), [LayerKind(INV_FREQ, 1.0, 50)], torch.float32, torch.device("cpu")).plans
    assert not plan.causal
    assert not plan.stacked
    most = blocks_module.MAX_WINDOWED_ROWS
    assert all(tile.hidden.shape[0] <= most and tile.hidden.shape[1] < most + 50 for tile in plan.masked)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 90), st.integers(1, 10), st.integers(-1, 2)), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
    ),
    group=st.sampled_from([1, 3]),
    rotary_dim=st.sampled_from([DIM, DIM // 2]),
    seed=st.integers(0, 1000),
)
def test_the_compiled_rows_and_the_reference_agree(
    rows: list[list[tuple[int, int, int]]], group: int, rotary_dim: int, seed: int
) -> None:
    """Each row is a list of (first slot, number of slots, turn)."""
    assert has_compiled_rows(torch.device("cpu"), torch.float32)
    torch.manual_seed(seed)
    runs = torch.tensor([run for row in rows for run in row])
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    first, length, turns = runs.T.contiguous()
    cos, sin = turn_tables(torch.tensor([3, -70, 4000]), INV_FREQ[: rotary_dim // 2], torch.float32)
    reads = RowReads(torch.randint(0, 7, (len(rows),)), starts, first, length, turns, cos, sin)
    q, k_pool, v_pool = torch.randn(7, 2 * group, DIM), torch.randn(100, 2, DIM), torch.randn(100, 2, DIM)
    for a, b in zip(
        attend_rows(q, k_pool, v_pool, reads, 0.3), attend_rows_reference(q, k_pool, v_pool, reads, 0.3), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotary_dim", [DIM, DIM // 2])
@pytest.mark.parametrize("offset", [0, 1, -1, 12_345, -100_000])
def test_turning_the_query_is_moving_the_key(rotary_dim: int, offset: int) -> None:
    inv_freq = INV_FREQ[: rotary_dim // 2]
    q, k = torch.randn(2, 1, 3, DIM, dtype=torch.float64)
    cos, sin = turn_tables(torch.tensor([offset]), inv_freq, torch.float64)
    back_cos, back_sin = turn_tables(torch.tensor([-offset]), inv_freq, torch.float64)
    moved = (q * turn(k, back_cos, back_sin)).sum()
    turned = (turn(q, cos, sin) * k).sum()
    torch.testing.assert_close(turned, moved)
    torch.testing.assert_close(turn(turn(k, cos, sin), back_cos, back_sin), k)


def test_an_empty_partial_weighs_nothing() -> None:
    out, lse = torch.randn(3, 2, 4), torch.randn(3, 2)
    lse[1] = -torch.inf
    merged = merge(out, lse, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(merged, out[[0, 2]])


@pytest.mark.parametrize("causal", [False, True])
def test_the_flash_kernel_and_the_reference_agree(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 2, 33, 16).unbind(0)
    for a, b in zip(_partial(q, k, v, causal, 0.2), partial_attention_reference(q, k, v, causal, 0.2), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_masked_flash_kernel_and_the_reference_agree(dtype: torch.dtype) -> None:
    q, (k, v) = torch.randn(33, 6, 16, dtype=dtype), torch.randn(2, 50, 2, 16, dtype=dtype).unbind(0)
    hidden = torch.rand(33, 50) < 0.7
    hidden[:, 3] = False
    out, lse = _masked(q, k, v, hidden, 0.2)
    exact = [x.double().transpose(0, 1) for x in (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))]
    scores = (exact[0] @ exact[1].transpose(1, 2) * 0.2).masked_fill(hidden, -torch.inf)
    close = {"atol": 1e-5 if dtype == torch.float32 else 2e-2, "rtol": 0}
    torch.testing.assert_close(out.double(), (scores.softmax(-1) @ exact[2]).transpose(0, 1), **close)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1).T, **close)
    plain, plain_lse = _join_groups(*partial_attention_reference(*_split_groups(q, k, v), False, 0.2, hidden))
    torch.testing.assert_close(plain, out, **close)
    torch.testing.assert_close(plain_lse, lse, **close)


def test_a_row_that_sees_nothing_weighs_nothing() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 16).unbind(0)
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[2] = True
    out, lse = partial_attention_reference(q, k, v, False, 0.2, hidden)
    assert torch.isneginf(lse[..., 2]).all()
    assert not torch.isnan(out).any()
    other, other_lse = torch.randn(5, 2, 16), torch.randn(5, 2)
    out, lse = out[0].transpose(0, 1), lse[0].T
    merged = merge(torch.cat((out, other)), torch.cat((lse, other_lse)), torch.arange(5).repeat(2), 5)
    torch.testing.assert_close(merged[2], other[2])
