"""A tenant has no more than it may, in all tiers together, and its calls are answered all the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_harness import Driver, force, logprobs, make_engine

from laban.actors.calls import Advice, Call
from laban.kvstore.encodings import EMPTY_VIEW

MOST_TOKENS = 320


def held_bytes(driver: Driver, tenant: str) -> int:
    engine = driver.engine
    tiers, per_token = engine.tiers, engine.tiers.needs.bytes_per_token
    pages = [engine.store.taken(tenant) * engine.store.page_size]
    if tiers.host is not None:
        pages.append(tiers.host.taken(tenant) * tiers.host.page_size)
    disk = 0 if tiers.disk is None else sum(size for _, size, whose in tiers.disk.held().values() if whose == tenant)
    return sum(pages) * per_token + disk


@pytest.mark.parametrize("seed", range(3))
def test_in_all_tiers_together(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    tight = Driver(make_engine(pool_tokens=512, host_tokens=256, disk_folder=tmp_path / "kv"))
    whole = Driver(make_engine(pool_tokens=8192))
    most = MOST_TOKENS * tight.engine.tiers.needs.bytes_per_token
    tight.engine.advise(Advice(kv_bytes=(("test", most),)))
    fixed = []
    for number in range(12):
        view, expected_view = tight.chain(), whole.chain()
        # Of those that read nothing themselves: to make others again may take more than there is.
        for place, spec in enumerate(draw.sample(fixed, min(2, len(fixed))) if number % 2 else ()):
            at = 100 * place + draw.randrange(30)
            tight.specs[spec.encoding_id] = spec
            view, expected_view = tight.place(view, spec, at), whole.place(expected_view, spec, at)
        tokens = [draw.randrange(128) for _ in range(draw.randint(20, 60))]
        sampling = force([1, 2]) if number % 2 else None
        start = 300 if number % 2 else 0
        pair = tight.submit(tokens, view, start, sampling), whole.submit(tokens, expected_view, start, sampling)
        tight.run()
        whole.run()
        if sampling is None:
            fixed.append(whole.result(pair[1]).encoding)
        else:
            found, expected = logprobs(tight.result(pair[0])), logprobs(whole.result(pair[1]))
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
        for _ in range(3):
            tight.step()
        assert held_bytes(tight, "test") <= most
        tight.engine.store.check_integrity()
        tight.engine.tiers.host.check_integrity()
    assert tight.engine.tiers.counters.totals().num_evicted_device  # it did need more
    tight.engine.close()


def test_less_than_it_has_and_no_limit_again(tmp_path: Path) -> None:
    driver = Driver(make_engine(pool_tokens=1024, host_tokens=1024, disk_folder=tmp_path / "kv"))
    for number in range(8):
        driver.prefill([number, *range(60)])
    per_token = driver.engine.tiers.needs.bytes_per_token
    assert held_bytes(driver, "test") > 300 * per_token
    driver.engine.advise(Advice(kv_bytes=(("test", 100 * per_token), ("unknown", 5))))
    driver.run()
    driver.step()
    assert held_bytes(driver, "test") <= 100 * per_token
    refused = driver.submit([7] * 200)
    driver.run()
    assert (driver.failure(refused).status, "a tenant may have" in driver.failure(refused).message) == (
        "FAILED_PRECONDITION",
        True,
    )
    driver.engine.advise(Advice(kv_bytes=()))
    assert driver.prefill([7] * 200).num_tokens == 200
    driver.engine.close()


def test_others_have_what_they_had() -> None:
    driver = Driver(make_engine(pool_tokens=1024))
    driver.engine.advise(Advice(kv_bytes=(("other", 100 * driver.engine.tiers.needs.bytes_per_token),)))
    specs = [driver.prefill([number, *range(60)]) for number in range(10)]
    call = Call("others", "other", EMPTY_VIEW, 0, (1,) * 90, ())
    driver.events[call.call_id] = []
    driver.engine.submit(call)
    driver.run()
    assert driver.result("others").encoding.namespace == "other"
    assert all(spec.encoding_id in driver.engine.store for spec in specs)
