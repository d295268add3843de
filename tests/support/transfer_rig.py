"""Two engines, one of which fetches from the other: the sending side without threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_harness import Driver, force, make_engine

from laban.actors.calls import Source, WorkerRates
from laban.actors.engine.cma import can_attach
from laban.actors.engine.direct import NIXL_MODULES
from laban.actors.engine.engine import Engine
from laban.actors.exporting import Exporting
from laban.actors.reach import Reach, Transport
from laban.actors.transfers import Chunk, Export, ExportRequest, Granted, PeerPort, Refused
from laban.kvstore.encodings import EncodingSpec

RATES = WorkerRates(100.0, 0.01, 1e12, 1e12, 1e12)
CHUNK_TOKENS = 32

HAS_NIXL = any(importlib.util.find_spec(name) for name in NIXL_MODULES)
needs_cma = pytest.mark.skipif(bool(can_attach()), reason=f"no process may read another: {can_attach()}")
needs_nixl = pytest.mark.skipif(not HAS_NIXL, reason="NIXL is not installed: pip install 'laban[nixl]'")
DIRECT = [pytest.param("cma", marks=needs_cma), pytest.param("nixl", marks=needs_nixl)]
TRANSPORTS = ["object_store", *DIRECT]


class Loop:
    """ExportPort over an engine that nobody else steps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def info(self) -> Any:
        return self.engine.info

    def export(self, request: ExportRequest) -> None:
        self.engine.export(request)
        while not request.reply.done():
            self.engine.step()

    def end_export(self, export: Export) -> None:
        self.engine.end_export(export)


class LocalPeer:
    """PeerPort without anything between, over a worker that offers one transport."""

    def __init__(self, exporting: Exporting, epoch: str, transport: Transport = "object_store") -> None:
        self.exporting, self.epoch = exporting, epoch
        self.reach = Reach(exporting._loop.engine.tiers.direct.reach.machine, (transport,))  # type: ignore[attr-defined]

    def open(self, encoding_id: str, transport: Transport) -> Granted | Refused:
        return self.exporting.open(encoding_id, self.epoch, transport)

    def renew(self, lease_id: int) -> Refused | None:
        return self.exporting.renew(lease_id)

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        return lambda: self.exporting.read(lease_id, begin, end)

    def close(self, lease_id: int) -> None:
        self.exporting.close(lease_id)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def driver_of(pool_tokens: int = 1024, host_tokens: int = 4096, **options: Any) -> Driver:
    """Over an engine that thinks little of encoding and much of its links, whatever it measures."""
    engine = make_engine(pool_tokens=pool_tokens, host_tokens=host_tokens, **options)
    engine.tiers.rates._add = lambda name, value: None  # type: ignore[method-assign]
    engine.tiers.rates._values = {name: getattr(RATES, name) for name in RATES.__dataclass_fields__}
    engine.tiers.rates.adopt = lambda known: None  # type: ignore[method-assign]
    return Driver(engine)


def exporting_of(driver: Driver, **options: Any) -> Exporting:
    return Exporting(Loop(driver.engine), chunk_tokens=CHUNK_TOKENS, **options)


def connect(
    receiver: Driver,
    sender: Driver,
    wrap: Callable[[PeerPort], PeerPort] = lambda peer: peer,
    transport: Transport = "object_store",
) -> Exporting:
    exporting = exporting_of(sender)
    peer = wrap(LocalPeer(exporting, sender.engine.info.epoch, transport))
    receiver.engine.connect(lambda worker_id, epoch: peer if worker_id == "other" else None)
    receiver.specs = sender.specs
    return exporting


def text(number: int, size: int) -> list[int]:
    return [(13 * number + 7 * i * i + 3 * i) % 128 for i in range(size)]


def source(spec: EncodingSpec, worker_id: str = "other", transfer_s: float = 0.0) -> Source:
    return Source(spec.encoding_id, worker_id, "epoch", transfer_s)


def pins(driver: Driver) -> int:
    assert driver.engine.tiers.host is not None
    return sum(entry.pins for entry in driver.engine.tiers.host.entries())


def assert_same(receiver: Driver, sender: Driver, spec: EncodingSpec, end: int) -> None:
    """The first tokens, bit by bit; the others were encoded again."""
    for part, was in zip(receiver.keys_and_values(spec), sender.keys_and_values(spec), strict=True):
        assert torch.equal(part[:, :end], was[:, :end])
        torch.testing.assert_close(part, was, atol=2e-4, rtol=0)


def answer(driver: Driver, spec: EncodingSpec, *sources: Source) -> Any:
    call = driver.submit([3], driver.chain(spec), sampling=force([4, 5, 6]), sources=sources)
    driver.run()
    return driver.result(call)
