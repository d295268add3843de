"""Drafted tokens on a card, in captured forwards of several rows a call: the same texts, in fewer iterations."""

from __future__ import annotations

import random

import pytest
import torch
from engine_harness import Driver, make_engine
from wild_drafts import SameCosts, Texts, draft_wildly, remember_texts

from laban.actors.calls import Sampling
from laban.kvstore.encodings import EMPTY_VIEW

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def play(kind: str, captured: bool, known: Texts | None) -> tuple[list[tuple[int, ...]], Texts, int]:
    driver = Driver(make_engine(kind, device="cuda", fused=True))
    if captured:
        driver.engine.runner.capture()  # type: ignore[attr-defined]
    drafting = None if known is None else draft_wildly(driver.engine, known, random.Random(1))
    texts = remember_texts(driver.engine) if known is None else {}
    shared = [driver.prefill([(7 * i + size) % 128 for i in range(size)]) for size in (40, 100, 9)]
    calls = []
    for turn in range(8):
        view = EMPTY_VIEW
        for place, spec in enumerate((*shared[turn % 3 :], *shared[: turn % 3])):
            view = driver.place(view, spec, 120 * place + turn)
        sampling = Sampling(max_tokens=20, temperature=float(turn % 2), seed=turn)
        calls.append(driver.submit([1, turn], view, 400, sampling, (5,)))
    driver.run()
    generated = [driver.result(call).generated for call in calls]
    return generated, texts, 0 if drafting is None else drafting.num_right


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("captured", [False, True])
def test_drafted_texts_are_the_texts(kind: str, captured: bool) -> None:
    plain, texts, _ = play(kind, captured, None)
    drafted, _, num_right = play(kind, captured, texts)
    assert drafted == plain
    assert num_right > 20


def test_what_is_quoted_takes_few_iterations() -> None:
    text = [(37 * i * i + 11 * i) % 126 + 1 for i in range(60)]
    driver = Driver(make_engine(device="cuda", fused=True, drafting=True))
    driver.engine.runner.capture()  # type: ignore[attr-defined]
    driver.engine._drafting.costs = SameCosts()
    read = driver.prefill(text)
    call = driver.submit([1, 2], driver.chain(read), None, Sampling(40, forced=tuple(text[3:43])))
    driver.run()
    assert list(driver.result(call).generated) == text[3:43]
    assert driver.result(call).phases.num_iterations < 14
