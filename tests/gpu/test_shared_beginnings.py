"""On a card: what is copied from a message that begins alike is what would have been computed."""

from __future__ import annotations

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, interpreter, make_engine

from laban.actors.engine.shared_beginnings import LEAST_ON_CARD

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_only_the_rest_is_encoded_and_all_of_it_is_right(kind: str) -> None:
    driver, oracle = Driver(make_engine(kind, device="cuda", fused=True)), interpreter(kind)
    beginning = [(31 * i + i // 7) % 128 for i in range(LEAST_ON_CARD + 50)]
    counts = []
    for end in ([1, 2, 3] * 9, [3, 2, 1] * 9, [2] * 27):
        call_id = driver.submit(beginning + end)
        driver.run()
        made = driver.result(call_id).encoding
        counts.append(driver.result(call_id).tokens_encoded)
        assert_same_encoding(driver, oracle, made, oracle.encode(list(made.tokens), 0, []), 3e-4)
    assert counts == [len(beginning) + 27, 27, 27]
