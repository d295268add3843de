"""The engine on a card computes what the interpreter on the CPU does."""

from __future__ import annotations

import random

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, force, interpreter, logprobs, make_engine, place_recorded
from engine_reference import KINDS

from laban.kvstore.encodings import EMPTY_VIEW

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [13, 512])
def test_reordered_ranges_at_offsets(kind: str, chunk: int) -> None:
    draw = random.Random(chunk)
    texts = [[draw.randrange(128) for _ in range(size)] for size in (40, 70, 5, 20)]
    driver, oracle = Driver(make_engine(kind, device="cuda", max_batch_tokens=chunk)), interpreter(kind)
    a = driver.prefill(texts[0])
    b = driver.prefill(texts[1], driver.chain(a))
    c = driver.prefill(texts[2], EMPTY_VIEW, 10)
    recorded_a = oracle.encode(texts[0], 0, [])
    recorded_b = oracle.encode(texts[1], 40, [place_recorded(recorded_a, 0)])
    recorded_c = oracle.encode(texts[2], 10, [])
    calls, expected = [], []
    for shift in range(5):  # in one batch, each at offsets of its own
        view = driver.place(driver.place(EMPTY_VIEW, b, shift), c, 200)
        view = driver.place(view, a, 100 + 3 * shift, 5, 30)
        calls.append(driver.submit([1, 2], view, 210, force(texts[3]), (1, 2)))
        seen = [place_recorded(recorded_b, shift), place_recorded(recorded_c, 200)]
        seen.append(place_recorded(recorded_a, 100 + 3 * shift, 5, 30))
        expected.append(oracle.encode([1, 2, *texts[3], 1, 2], 210, seen))
    driver.run()
    for call, recorded in zip(calls, expected, strict=True):
        result = driver.result(call)
        assert_same_encoding(driver, oracle, result.encoding, recorded)
        torch.testing.assert_close(logprobs(result), recorded.logits[1:21].log_softmax(-1), atol=3e-4, rtol=0)
