"""Which failures of an iteration end the worker: those that the next call would meet as well."""

from __future__ import annotations

import pytest
from engine_harness import Driver, make_engine
from torch import AcceleratorError

from laban.actors.calls import Call, CallFailed, Sampling
from laban.actors.engine.failures import MOST_IN_A_ROW
from laban.actors.worker import WorkerLoop
from laban.kvstore.encodings import EMPTY_VIEW

CARD_LOST = AcceleratorError("CUDA error: an illegal memory access was encountered")


def break_runner(driver: Driver, patch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(batch: object) -> None:
        raise error

    patch.setattr(driver.engine.runner, "forward", broken)


def test_a_broken_device_ends_the_worker_at_once_and_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine())
    break_runner(driver, monkeypatch, CARD_LOST)
    call = driver.submit([1, 2, 3], sampling=Sampling(max_tokens=5))
    with pytest.raises(AcceleratorError, match="illegal memory access"):
        driver.run()
    assert not any(isinstance(event, CallFailed) for event in driver.events[call])


def test_so_it_does_where_a_call_could_not_begin_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine())

    def broken(*args: object) -> None:
        raise CARD_LOST

    monkeypatch.setattr(driver.engine.scheduler.admission._starting, "_running", broken)
    call = driver.submit([1, 2, 3], sampling=Sampling(max_tokens=5))
    with pytest.raises(AcceleratorError, match="illegal memory access"):
        driver.run()
    assert not driver.events[call]


def test_so_do_many_failures_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine())
    break_runner(driver, monkeypatch, ValueError("always"))
    for _ in range(MOST_IN_A_ROW - 1):
        call = driver.submit([1, 2, 3], sampling=Sampling(max_tokens=5))
        driver.run()
        assert driver.failure(call).status == "INTERNAL"
    call = driver.submit([1, 2, 3], sampling=Sampling(max_tokens=5))
    with pytest.raises(ValueError, match="always"):
        driver.run()
    assert not driver.events[call]


def test_calls_that_fail_now_and_then_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine())
    for number in range(2 * MOST_IN_A_ROW):
        with monkeypatch.context() as patch:
            break_runner(driver, patch, ValueError("poison"))
            call = driver.submit([1, 2, 3], sampling=Sampling(max_tokens=5))
            driver.run()
        assert "ValueError: poison" in driver.failure(call).message
        assert driver.prefill([1, 2, number]).num_tokens == 3


def test_whoever_reads_the_reports_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine())
    break_runner(driver, monkeypatch, CARD_LOST)
    loop = WorkerLoop(lambda: driver.engine)
    loop.submit([Call("a", "test", EMPTY_VIEW, 0, (1, 2), (), Sampling(max_tokens=3))])
    with pytest.raises(AcceleratorError):
        list(loop.reports())
    loop.stop()
