"""The engine on a card computes what the interpreter on the CPU does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_checks import check_reordered_ranges_at_offsets
from engine_harness import (
    Driver,
    byte_backend,
    make_engine,
)
from engine_reference import DRAWN_KINDS, KINDS, random_model

from laban.actors.calls import Sampling
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.load import load_engine
from laban.kvstore.encodings import EMPTY_VIEW

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("kind", [*KINDS, *DRAWN_KINDS])
@pytest.mark.parametrize(("chunk", "fused"), [(13, False), (512, False), (13, True), (512, True)])
def test_reordered_ranges_at_offsets(kind: str, chunk: int, fused: bool) -> None:
    engine = make_engine(kind, device="cuda", fused=fused, max_batch_tokens=chunk)
    check_reordered_ranges_at_offsets(engine, kind, chunk, tolerance=3e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replayed_graph_is_bit_for_bit_what_was_captured(kind: str, dtype: torch.dtype) -> None:
    """At the same padded shape, by the same kernels: keys, values and tokens."""
    pools, tokens = [], []
    for captured in (False, True):
        driver = Driver(make_engine(kind, device="cuda", fused=True, dtype=dtype))
        if captured:
            driver.engine.runner.capture()  # type: ignore[attr-defined]
        shared = [driver.prefill([(7 * i + size) % 128 for i in range(size)]) for size in (40, 100, 9)]
        calls = []
        for turn in range(6):
            view = EMPTY_VIEW
            for place, spec in enumerate((*shared[turn % 3 :], *shared[: turn % 3])):
                view = driver.place(view, spec, 120 * place + turn)
            calls.append(driver.submit([1, turn], view, 400, Sampling(max_tokens=12, temperature=1.0, seed=turn)))
        driver.run()
        tokens.append([driver.result(call).generated for call in calls])
        pools.append((driver.engine.runner.k_pool, driver.engine.runner.v_pool))
    assert tokens[0] == tokens[1]
    for eager, replayed in zip(*pools, strict=True):
        assert torch.equal(eager, replayed)


def test_a_model_folder_is_served_on_the_card(tmp_path: Path) -> None:
    """Loaded as a worker loads it: memory measured, graphs captured, the backend named."""
    model = random_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    byte_backend().save(str(tmp_path / "tokenizer.json"))
    engine = load_engine(tmp_path, EngineConfig(device="cuda", memory_share=0.3, host_bytes=1 << 30))
    assert engine.info.attention_backend.startswith("fused-triton+")
    assert engine.info.dtype == "bfloat16"
    held_bytes = engine.info.num_pages * engine.info.page_size * engine.info.bytes_per_token
    total_bytes = torch.cuda.mem_get_info()[1]
    assert 0.05 * total_bytes < held_bytes < 0.3 * total_bytes
    driver = Driver(engine)
    first = driver.prefill([1, 2, 3] * 100)
    call = driver.submit([4, 5], driver.place(EMPTY_VIEW, first, 7), 310, Sampling(max_tokens=20))
    driver.run()
    assert len(driver.result(call).generated) == 20
