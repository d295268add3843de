"""What any engine must give, on a CPU and on a card."""

from __future__ import annotations

import random

import torch
from engine_harness import TOLERANCE, Driver, assert_same_encoding, force, interpreter, logprobs, place_recorded

from laban.actors.engine.engine import Engine
from laban.kvstore.encodings import EMPTY_VIEW


def check_reordered_ranges_at_offsets(engine: Engine, kind: str, seed: int, tolerance: float = TOLERANCE) -> None:
    """Calls of one batch read messages and ranges in their own order, at offsets of their own, as the interpreter does.

    `tolerance` is of log-probabilities.
    """
    draw, driver, oracle = random.Random(seed), Driver(engine), interpreter(kind)
    texts = [[draw.randrange(128) for _ in range(size)] for size in (40, 70, 5, 20)]
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
        torch.testing.assert_close(logprobs(result), recorded.logits[1:21].log_softmax(-1), atol=tolerance, rtol=0)
