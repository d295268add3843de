"""An engine with memory below the device, links of a given speed, and copies that can be made to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_harness import Driver, make_engine

from laban.actors.calls import WorkerRates
from laban.actors.engine.copier import HostCopy

FAST_LINK = WorkerRates(100.0, 0.01, 1e12, 1e12, 1e12)
QUICK = WorkerRates(1e6, 0.01, 1e12, 1e12, 1e12)
SLOW_LINK = WorkerRates(1e6, 0.01, 1e6, 1e12, 1e12)


def driver_of(
    pool_tokens: int = 256, host_tokens: int = 4096, rates: WorkerRates = FAST_LINK, **options: object
) -> Driver:
    """Over an engine that takes `rates` for its own, whatever it measures."""
    engine = make_engine(pool_tokens=pool_tokens, host_tokens=host_tokens, **options)  # type: ignore[arg-type]
    engine.tiers.rates.adopt = lambda known: None  # type: ignore[method-assign]
    engine.tiers.rates._add = lambda name, value: None  # type: ignore[method-assign]
    engine.tiers.rates._values = {name: getattr(rates, name) for name in rates.__dataclass_fields__}
    return Driver(engine)


def text(number: int, size: int) -> list[int]:
    return [(13 * number + 7 * i * i + 3 * i) % 128 for i in range(size)]


def save_all(driver: Driver) -> None:
    """Whatever is on the device, to the host."""
    engine = driver.engine
    for entry in list(engine.store.entries()):
        if entry.ready and entry.key not in engine.tiers.host:
            assert engine.tiers.save_one(engine.store, entry)
    driver.run()


def fail_copies(monkeypatch: Any, fails: Callable[[str], bool]) -> None:
    """From now on a part of a copy fails if `fails` says so of its direction, "load" or "save"."""
    move = HostCopy.move

    def moved(copy: HostCopy, part: Any) -> None:
        if fails("load" if copy._loads else "save"):
            raise MemoryError("no room for a table")
        move(copy, part)

    monkeypatch.setattr(HostCopy, "move", moved)


def assert_nothing_is_held(driver: Driver) -> None:
    """Of an engine with nothing to do: all there is can be evicted, and no copy is awaited."""
    engine = driver.engine
    for store in (engine.store, engine.tiers.host):
        if store is not None:
            store.check_integrity()
            assert all(entry.ready and entry.pins == 0 for entry in store.entries())
    if (loads := engine.scheduler.loads) is not None:
        assert not loads.active
        assert loads._bytes_in_flight == 0
