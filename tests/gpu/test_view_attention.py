"""Tiles on a card against the row-by-row definition in float64: every type, prefill and decode, several readers."""

from __future__ import annotations

import random

import pytest
import torch

from laban.actors.engine.batch import build_batch
from laban.actors.engine.layers import LayerKind
from laban.actors.engine.sequence import Chunk, Read, Sequence
from laban.kernels.view_attention import attend, attend_reference
from laban.kvstore.store import Entry

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PAGE, PAGES, START = 16, 400, 100
# What rounding the inputs of a dot product of 64 to 128 unit normals once more may cost.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("head_dim", "group"), [(64, 3), (128, 4), (32, 1)])
@pytest.mark.parametrize(("seed", "window"), [(0, None), (1, 30), (2, 400), (3, None)])
def test_tiles_compute_the_definition(
    dtype: torch.dtype, head_dim: int, group: int, seed: int, window: int | None
) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    device, pages = torch.device("cuda"), draw.sample(range(PAGES), PAGES)

    def entry(tokens: int) -> Entry:
        return Entry(f"e{len(pages)}", [pages.pop() for _ in range(-(-tokens // PAGE))], PAGE)

    shared = [(entry(n), n) for n in (90, 300, 17)]
    chunks, sees = [], []
    for count, begin in [(1, 5), (40, 0), (1, 130), (7, 20), (1, 0), (1, 700)]:
        reads = [Read(e, draw.choice([0, 5, -3, 400]), 0, n, 0) for e, n in draw.sample(shared, draw.randrange(4))]
        own = entry(begin + count)
        chunks.append(Chunk(Sequence(own, START, [1] * (begin + count), tuple(reads), (), None), begin, count))
        context = [
            (slot, r.offset, r.position + i)
            for r in reads
            for i, slot in enumerate(s for f, n in r.entry.runs(0, r.end) for s in range(f, f + n))
        ]
        own_slots = [s for f, n in own.runs(0, begin + count) for s in range(f, f + n)]
        for at in range(START + begin, START + begin + count):
            keys = [*context, *((slot, 0, START + i) for i, slot in enumerate(own_slots[: at - START + 1]))]
            sees.append([(slot, offset) for slot, offset, s in keys if window is None or at - s < window])
    inv_freq = 1.0 / 10_000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    batch = build_batch(chunks, [LayerKind(inv_freq.to(device), 1.0, window)], dtype, device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    n = batch.num_tokens
    q, k, v = normal(n, 2 * group, head_dim), normal(n, 2, head_dim), normal(n, 2, head_dim)
    k_pool = torch.full((PAGE * PAGES, 2, head_dim), torch.nan, device=device, dtype=dtype)
    v_pool = k_pool.clone()
    visible = sorted({slot for row in sees for slot, _ in row})
    k_pool[visible], v_pool[visible] = normal(len(visible), 2, head_dim), normal(len(visible), 2, head_dim)
    k_pool[batch.write_slots], v_pool[batch.write_slots] = k, v
    out = attend(q, k, v, k_pool, v_pool, batch.plans[0], head_dim**-0.5).double().cpu()
    expected = attend_reference(q.cpu(), k_pool.cpu(), v_pool.cpu(), sees, inv_freq, head_dim**-0.5)
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=0)
