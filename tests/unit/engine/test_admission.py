"""What an admission counts on stays until it is over, and nothing stays of one that fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_harness import Driver, make_engine

from laban.actors.calls import Sampling
from laban.actors.engine.engine import Engine
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, make_spec

LONG = Sampling(max_tokens=90)


def unknown(driver: Driver, seed: int, size: int) -> EncodingSpec:
    """A message that nobody has encoded yet."""
    spec = make_spec("test", [(13 * seed + 7 * i * i) % 128 for i in range(size)], 0, EMPTY_VIEW, {})
    driver.specs[spec.encoding_id] = spec
    return spec


def test_a_preemption_leaves_what_the_older_call_reads_too() -> None:
    texts = []
    for pool_tokens in (256, 4096):
        driver = Driver(make_engine(pool_tokens=pool_tokens, max_batch_tokens=16))
        read = unknown(driver, 1, 100)
        younger = driver.submit([1, 2], driver.chain(read), sampling=LONG, rank=5)
        for _ in range(2):
            driver.step()
        assert not driver.engine.store.get(read.encoding_id).ready
        older = driver.submit([3, 4], driver.chain(read), sampling=LONG, rank=1)
        driver.run()
        texts.append([driver.result(call).text for call in (younger, older)])
        assert driver.engine.tiers.counters.totals().preemptions == (pool_tokens == 256)
    assert texts[0] == texts[1]


def test_who_is_short_of_its_own_share_takes_nothing_from_others() -> None:
    driver = Driver(make_engine(pool_tokens=256, tenant_share=0.5))
    older = driver.submit([1, 2], sampling=LONG, rank=0, namespace="test/a")
    others = driver.submit([1, 2], sampling=LONG, rank=5, namespace="test/b")
    driver.step()
    short = driver.submit([3, 4], sampling=Sampling(max_tokens=40), rank=1, namespace="test/a")
    driver.run()
    assert [driver.result(call).tokens_generated for call in (older, others, short)] == [90, 90, 40]
    assert not driver.engine.tiers.counters.totals().preemptions


def fails(*args: object, **kwargs: object) -> None:
    raise RuntimeError("not this time")


def copies_beginnings(engine: Engine) -> tuple[object, str]:
    return engine.scheduler.beginnings, "copy"


def reads(engine: Engine) -> tuple[object, str]:
    return engine.scheduler.unfinished, "read"


def makes_decodes(engine: Engine) -> tuple[object, str]:
    return engine, "_make_decode"


def runs(engine: Engine) -> tuple[object, str]:
    return engine.scheduler.admission._starting, "_running"


@pytest.mark.parametrize("part", [copies_beginnings, reads, makes_decodes, runs])
def test_a_failed_admission_ends_its_call_alone_and_leaves_nothing(
    part: Callable[[Engine], tuple[object, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(make_engine(max_batch_tokens=16))
    kept = driver.prefill([7] * 40)
    other = driver.submit([9, 9], sampling=Sampling(max_tokens=20))
    driver.step()
    keys = {entry.key: entry.pins for entry in driver.engine.store.entries()}
    view = driver.chain(kept, make_after(driver, kept))
    call = driver.submit([1, 2], view, sampling=LONG)
    with monkeypatch.context() as patch:
        patch.setattr(*part(driver.engine), fails)
        driver.step()
    failure = driver.failure(call)
    assert (failure.status, "RuntimeError: not this time" in failure.message) == ("INTERNAL", True)
    assert {entry.key: entry.pins for entry in driver.engine.store.entries()} == keys
    again = driver.submit([1, 2], view, sampling=LONG)
    driver.run()
    assert driver.result(again).tokens_generated == 90
    assert driver.result(other).tokens_generated == 20


def make_after(driver: Driver, before: EncodingSpec) -> EncodingSpec:
    spec = make_spec("test", [5] * 30, before.stop, driver.chain(before), driver.specs)
    driver.specs[spec.encoding_id] = spec
    return spec
