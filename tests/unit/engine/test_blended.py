"""Blended views on an engine, against their definition: some tokens encoded where they are read, the others as made."""

from __future__ import annotations

import random
from fractions import Fraction
from math import ceil

import pytest
import torch
from engine_harness import (
    TOLERANCE,
    Driver,
    assert_same_encoding,
    force,
    interpreter,
    logprobs,
    make_engine,
    place_recorded,
)
from engine_reference import KINDS, Interpreter, Placed

from laban.cluster.views import Entry, Message, compose, encoded_again, home_of
from laban.kvstore.spaces import Space

ROOT = [3, 1, 4, 1, 5]
SPACE = Space("test")


def defined(oracle: Interpreter, texts: list[list[int]], share: float) -> list[Placed]:
    """The view of messages that were all made under the root, so that the first stands where it was made."""
    root = oracle.encode(ROOT, 0, [])
    sizes = [len(text) for text in texts]
    heads = [0, *encoded_again(sizes[1:], ceil(Fraction(str(share)) * sum(sizes)))]
    view, at = [place_recorded(root, 0)], len(ROOT)
    for text, head in zip(texts, heads, strict=True):
        if head:
            view.append(place_recorded(oracle.encode(text[:head], at, view), at))
        if head < len(text):
            made = oracle.encode(text, len(ROOT), view[:1])
            view.append(place_recorded(made, at + head, head))
        at += len(text)
    return view


@pytest.mark.parametrize("batch_tokens", [512, 33])  # 33: prefill in chunks
@pytest.mark.parametrize("kind", KINDS)
def test_a_blended_view_is_its_definition(kind: str, batch_tokens: int) -> None:
    rng = random.Random()
    driver, oracle = Driver(make_engine(kind, max_batch_tokens=batch_tokens)), interpreter(kind)
    texts = [[rng.randrange(128) for _ in range(size)] for size in (rng.randint(1, 20), 73, 60, 30)]
    messages = []
    for text in texts:
        home, more = home_of(SPACE, ROOT, text, max_context=512, what="message")
        driver.specs.update(more)
        messages.append(Message("user", home))
    for share in (0.15, 0.6, 1.0):
        order = rng.sample(range(len(texts)), 3)
        entries = [Entry(messages[number], "blended", recompute_share=share) for number in order]
        composed = compose(SPACE, ROOT, entries, driver.specs, max_context=512)
        driver.specs.update(composed.added)
        header, answer = [7, 8], [rng.randrange(128) for _ in range(5)]
        call = driver.submit(header, composed.view, composed.start, force(answer))
        driver.run()
        result = driver.result(call)
        expected = oracle.encode(header + answer, composed.start, defined(oracle, [texts[n] for n in order], share))
        assert_same_encoding(driver, oracle, result.encoding, expected)
        rows = expected.logits[len(header) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(logprobs(result), rows, atol=TOLERANCE, rtol=0)
