"""Every tile kind against the row-by-row definition in float64, on fresh random inputs."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.actors.engine import batch as batch_module
from laban.actors.engine.batch import build_batch
from laban.actors.engine.layers import LayerKind
from laban.actors.engine.sequence import Chunk, Read, Sequence
from laban.kernels import row_attention
from laban.kernels.rotary import turn, turn_tables
from laban.kernels.row_attention import RowReads, attend_rows, attend_rows_reference, has_compiled_rows
from laban.kernels.view_attention import attend, attend_reference, merge, partial_attention_reference
from laban.kvstore.store import Entry

PAGE, PAGES, DIM = 4, 400, 16
INV_FREQ = 1.0 / 10_000 ** (torch.arange(0, DIM, 2).float() / DIM)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Chunk], list[list[tuple[int, int]]], int]:
    """Chunks over scattered entries, and what each of their rows sees: (slot, offset)."""
    pages = list(draw(st.permutations(range(PAGES)))) if draw(st.booleans()) else list(range(PAGES))

    def entry(key: str, tokens: int) -> Entry:
        taken, pages[: -(-tokens // PAGE)] = pages[: -(-tokens // PAGE)], []
        return Entry(key, taken, PAGE)

    shared = [(entry(f"m{i}", n), n) for i, n in enumerate(draw(st.lists(st.integers(1, 180), min_size=1, max_size=4)))]
    chunks, sees = [], []
    for i in range(draw(st.integers(1, 6))):
        reads = []
        for which, offset in draw(
            st.lists(st.tuples(st.integers(0, len(shared) - 1), st.sampled_from([0, 0, 5, -3, 400])), max_size=4)
        ):
            begin = draw(st.sampled_from([0, 0, shared[which][1] // 2]))
            reads.append(Read(shared[which][0], offset, begin, shared[which][1], 0))
        count, begin = draw(st.sampled_from([1, 1, 1, 2, 9, 30])), draw(st.sampled_from([0, 1, 20, 150]))
        own = entry(f"own{i}", begin + count)
        chunks.append(Chunk(Sequence(own, 7, [1] * (begin + count), tuple(reads), (), None), begin, count))
        context = [(s, r.offset) for r in reads for f, n in r.entry.runs(r.begin, r.end) for s in range(f, f + n)]
        own_slots = [s for f, n in own.runs(0, begin + count) for s in range(f, f + n)]
        sees += [[*context, *((s, 0) for s in own_slots[: begin + j + 1])] for j in range(count)]
    return chunks, sees, draw(st.sampled_from([1, 2, 4]))


@settings(max_examples=60, deadline=None)
@given(
    case=batches(),
    seed=st.integers(0, 1000),
    shared=st.sampled_from([1, 1000, batch_module.MIN_SHARED_TOKENS]),
    piece=st.sampled_from([1, 50, batch_module.MIN_SLICE_TOKENS]),
    row_work=st.sampled_from([0, 500, 1_000_000]),
    compiled=st.booleans(),
)
def test_tiles_compute_the_definition(
    case: tuple[list[Chunk], list[list[tuple[int, int]]], int],
    seed: int,
    shared: int,
    piece: int,
    row_work: int,
    compiled: bool,
) -> None:
    """Whatever is stacked, sliced or left to single rows: the thresholds decide the speed alone."""
    chunks, sees, group = case
    torch.manual_seed(seed)
    with (
        mock.patch.multiple(batch_module, MIN_SHARED_TOKENS=shared, MIN_SLICE_TOKENS=piece, ROW_WORK_PER_TILE=row_work),
        mock.patch.object(batch_module, "has_compiled_rows", return_value=compiled),
    ):
        batch = build_batch(chunks, [LayerKind(INV_FREQ, 1.0, None)], torch.float32, torch.device("cpu"))
    n = batch.num_tokens
    q, k, v = torch.randn(n, 2 * group, DIM), torch.randn(n, 2, DIM), torch.randn(n, 2, DIM)
    k_pool, v_pool = torch.full((PAGE * PAGES, 2, DIM), torch.nan), torch.full((PAGE * PAGES, 2, DIM), torch.nan)
    visible = sorted({slot for row in sees for slot, _ in row})
    k_pool[visible], v_pool[visible] = torch.randn(len(visible), 2, DIM), torch.randn(len(visible), 2, DIM)
    k_pool[batch.write_slots], v_pool[batch.write_slots] = k, v
    with mock.patch.object(row_attention, "has_compiled_rows", return_value=compiled):
        out = attend(q, k, v, k_pool, v_pool, batch.plans[0], 0.3)
    expected = attend_reference(q, k_pool, v_pool, sees, INV_FREQ, 0.3)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)


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
    from laban.kernels.view_attention import _partial

    q, k, v = torch.randn(3, 2, 2, 33, 16).unbind(0)
    for a, b in zip(_partial(q, k, v, causal, 0.2), partial_attention_reference(q, k, v, causal, 0.2), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
