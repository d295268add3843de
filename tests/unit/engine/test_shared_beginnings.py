"""A message that begins as another in its place is encoded from there on: less work, the same keys and values."""

from __future__ import annotations

import random

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, interpreter, make_engine, place_recorded
from engine_reference import KINDS, VOCAB_SIZE

from laban.actors.calls import Sampling
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec


def some_tokens(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCAB_SIZE) for _ in range(count)]


BEGINNING, ENDS = some_tokens(45, 1), [some_tokens(20, seed) for seed in range(2, 6)]
ENDS[1][0] = 1 - min(ENDS[0][0], 1)


def encoded(driver: Driver, tokens: list[int], chain: list[EncodingSpec]) -> tuple[EncodingSpec, int]:
    call_id = driver.submit(tokens, driver.chain(*chain))
    driver.run()
    return driver.result(call_id).encoding, driver.result(call_id).tokens_encoded


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_rest_is_encoded_and_all_of_it_is_right(kind: str) -> None:
    driver, oracle = Driver(make_engine(kind, max_batch_tokens=16)), interpreter(kind)
    first, _ = encoded(driver, some_tokens(17, 9), [])
    before = place_recorded(oracle.encode(list(first.tokens), 0, []), 0)
    for chain, placed in (([], []), ([first], [before])):
        start = sum(spec.num_tokens for spec in chain)
        counts = []
        for end in ENDS[:2]:
            made, count = encoded(driver, BEGINNING + end, chain)
            counts.append(count)
            assert_same_encoding(driver, oracle, made, oracle.encode(list(made.tokens), start, placed))
        assert counts == [65, 20]
    # Of a beginning that ends, too, the last token is computed.
    short, count = encoded(driver, BEGINNING, [])
    assert count == 1
    assert_same_encoding(driver, oracle, short, oracle.encode(BEGINNING, 0, []))


def test_elsewhere_it_is_another_beginning() -> None:
    """Another place, view or namespace: nothing is shared."""
    driver = Driver(make_engine())
    first, _ = encoded(driver, some_tokens(17, 9), [])
    encoded(driver, BEGINNING + ENDS[0], [])
    assert encoded(driver, BEGINNING + ENDS[1], [first])[1] == 65
    for place in ({"start": 3}, {"namespace": "other"}):
        call_id = driver.submit(BEGINNING + ENDS[2], EMPTY_VIEW, **place)
        driver.run()
        assert driver.result(call_id).tokens_encoded == 65


def test_a_reader_is_told_what_it_found() -> None:
    """In a call that generates: the beginning was reused, the rest encoded; nothing was loaded."""
    driver = Driver(make_engine())
    made, _ = encoded(driver, BEGINNING + ENDS[0], [])
    driver.engine.store.evict_all()
    encoded(driver, BEGINNING + ENDS[1], [])
    call_id = driver.submit([1, 2], driver.chain(made), sampling=Sampling(max_tokens=1))
    driver.run()
    result = driver.result(call_id)
    assert (result.tokens_read, result.tokens_reused, result.tokens_loaded) == (65, 45, 0)
    assert result.tokens_encoded == 20 + 2
    driver.engine.store.check_integrity()


def test_what_has_gone_is_no_beginning() -> None:
    """Its pages may hold something else by now."""
    driver, oracle = Driver(make_engine(pool_tokens=128)), interpreter()
    encoded(driver, BEGINNING + ENDS[0], [])
    driver.engine.store.evict_all()
    encoded(driver, some_tokens(100, 11), [])
    driver.engine.store.evict_all()
    made, count = encoded(driver, BEGINNING + ENDS[1], [])
    assert count == 65
    assert_same_encoding(driver, oracle, made, oracle.encode(list(made.tokens), 0, []))


def test_many_that_begin_alike_are_right_in_any_order() -> None:
    """Random messages over few tokens under one view, in a pool that does not hold them all."""
    driver, oracle = Driver(make_engine(pool_tokens=256)), interpreter()
    generator = random.Random(5)
    saved = 0
    for _ in range(60):
        tokens = [generator.randrange(2) for _ in range(generator.randint(1, 40))]
        made, count = encoded(driver, tokens, [])
        saved += len(tokens) - count
        expected = oracle.encode(tokens, 0, [])
        keys, values = driver.keys_and_values(made)
        torch.testing.assert_close(values.double(), expected.values.double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            keys[0].double(), oracle.rotate(0, expected.keys[0], torch.arange(len(tokens))), atol=1e-4, rtol=0
        )
    assert saved > 100
