"""Reading the memory of another worker: what comes, and what happens when it does not."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import Driver, logprobs
from pool_holder import filled
from transfer_rig import (
    CHUNK_TOKENS,
    DIRECT,
    HAS_NIXL,
    answer,
    assert_same,
    connect,
    driver_of,
    needs_cma,
    pins,
    source,
    text,
)

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.copy_pieces import Pieces
from laban.actors.engine.direct import DirectMemory, Reader, reach_of
from laban.actors.engine.host_pool import HostPool
from laban.actors.errors import FailedPrecondition
from laban.actors.reach import Reach, Transport
from laban.actors.transfers import NoBuffer, PeerLost, TransportFailed, Window

PAGES, PAGE_SIZE, LAYERS, KV_HEADS, HEAD_DIM = SIZES = (64, 16, 3, 2, 8)
SEED = 7


@pytest.fixture
def holder(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], Window]]:
    """Another process, and where its pool lies."""
    program = Path(__file__).parents[2] / "support" / "pool_holder.py"
    command = [sys.executable, str(program), request.param, *map(str, SIZES), str(SEED)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = next(each for each in process.stdout if each.startswith("80"))
    yield process, pickle.loads(bytes.fromhex(line))
    process.kill()
    process.wait()


def own_pool(num_pages: int = PAGES // 2, num_layers: int = LAYERS) -> HostPool:
    return HostPool(num_pages, PAGE_SIZE, num_layers, KV_HEADS, HEAD_DIM, torch.float32, pinned=False)


def random_pieces(rng: np.random.Generator) -> Pieces:
    """Of any length, anywhere there, to places of their own here."""
    lengths = rng.integers(1, 40, 12)
    here = lengths.cumsum() - lengths + rng.integers(0, 8)
    there = [rng.integers(0, PAGES * PAGE_SIZE - length + 1) for length in lengths]
    return np.stack([np.array(there), here, lengths], axis=1).astype(np.int64)


@pytest.mark.parametrize("holder", DIRECT, indirect=True)
def test_pieces_come_bit_by_bit_and_a_dead_process_is_lost_at_once(holder: tuple[Any, Window]) -> None:
    process, window = holder
    there, here = filled(SEED, *SIZES), own_pool()
    reader = DirectMemory(here, window.transport).reader(window)
    rng = np.random.default_rng()
    for _ in range(5):
        expected = [plane.clone() for plane in (here.k, here.v)]
        pieces = random_pieces(rng)
        for theirs, own in zip((there.k, there.v), expected, strict=True):
            for first, to, length in pieces.tolist():
                own[:, to : to + length] = theirs[:, first : first + length]
        reader.read(pieces)
        assert torch.equal(here.k, expected[0])
        assert torch.equal(here.v, expected[1])
    with pytest.raises(ValueError, match="not in a pool"):
        reader.read(np.array([[PAGES * PAGE_SIZE - 1, 0, 2]], np.int64))
    with pytest.raises(ValueError, match="not in a pool"):
        reader.read(np.array([[0, here.num_slots - 1, 2]], np.int64))
    # Killed while it is read.
    threading.Timer(0.2, process.kill).start()
    began_s = time.monotonic()

    def read_on() -> None:
        while time.monotonic() < began_s + 20:
            reader.read(pieces)

    with pytest.raises(PeerLost):
        read_on()
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("transport", DIRECT)
def test_rows_of_another_shape_are_not_read(transport: Transport) -> None:
    window = DirectMemory(own_pool(num_layers=2), transport).window(transport)
    assert isinstance(window, Window)
    with pytest.raises(TransportFailed, match="expected"):
        DirectMemory(own_pool(), transport).reader(window)


@needs_cma
def test_a_process_number_used_again_is_not_read() -> None:
    window = DirectMemory(own_pool(), "cma").window("cma")
    assert isinstance(window, Window)
    pid, started = window.process
    with pytest.raises(TransportFailed, match="another one"):
        DirectMemory(own_pool(), "cma").reader(replace(window, process=(pid, started - 1)))
    closed = subprocess.Popen([sys.executable, "-c", ""])
    closed.wait()
    with pytest.raises(TransportFailed):
        DirectMemory(own_pool(), "cma").reader(replace(window, process=(closed.pid, started)))


@needs_cma
def test_a_process_with_many_files_open_reads_by_cma(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2048:
        if hard != resource.RLIM_INFINITY and hard < 2048:
            pytest.skip(f"no more than {hard} files may be open")
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    open_process = os.pidfd_open

    def opened_late(pid: int) -> int:
        low = open_process(pid)
        try:
            return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1024)
        finally:
            os.close(low)

    there, here = own_pool(), own_pool()
    there.k.fill_(3)
    window = DirectMemory(there, "cma").window("cma")
    assert isinstance(window, Window)
    monkeypatch.setattr("os.pidfd_open", opened_late)
    try:
        DirectMemory(here, "cma").reader(window).read(np.array([[0, 5, 2]], np.int64))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (here.k[:, 5:7] == 3).all()


def test_what_is_named_and_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.actors.engine.direct.can_attach", lambda: "it is hardened")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for transport, why in (("cma", "it is hardened"), ("nixl", "not installed")):
        with pytest.raises(FailedPrecondition, match=why) as raised:
            reach_of(transport)
        assert (raised.value.field, raised.value.value) == ("cache.transport", transport)
    assert reach_of("auto").transports == reach_of("object_store").transports == ("object_store",)
    assert DirectMemory(None, "nixl").reach == Reach()


def test_an_engine_says_how_it_is_reached() -> None:
    driver = driver_of()
    driver.engine.connect(lambda worker_id, epoch: None)
    assert driver.engine.info.reach == reach_of(EngineConfig().transport)
    assert ("nixl" in driver.engine.info.reach.transports) == HAS_NIXL


class Meddled:
    """A reader with something done before the range that begins at token 64 is read."""

    def __init__(self, reader: Reader, meddle: Callable[[], None]) -> None:
        self._reader, self._meddle, self.num_reads = reader, meddle, 0

    def read(self, pieces: Pieces) -> None:
        self.num_reads += 1
        if self.num_reads == 1 + 64 // CHUNK_TOKENS:
            self._meddle()
        self._reader.read(pieces)


def meddle(receiver: Driver, act: Callable[[], None]) -> list[Meddled]:
    """Every reader that is made is in the list."""
    direct, made = receiver.engine.tiers.direct, []
    make = direct.reader

    def reader(window: Window) -> Meddled:
        made.append(Meddled(make(window), act))
        return made[-1]

    direct.reader = reader  # type: ignore[method-assign,assignment]
    receiver.engine.tiers.fetcher._read_threads = ThreadPoolExecutor(1)  # type: ignore[union-attr]
    return made


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@needs_cma
def test_what_was_read_before_a_worker_was_lost_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.actors.engine.fetching.LOST_S", 0.0)
    sender, receiver = driver_of(), driver_of()
    exporting = connect(receiver, sender, transport="cma")
    made = meddle(receiver, failing(PeerLost("it was killed")))
    spec = sender.prefill(text(2, 150))
    result = answer(receiver, spec, source(spec))
    assert (result.tokens_loaded, result.tokens_reused, result.tokens_encoded) == (64, 64, 1 + 150 - 64)
    torch.testing.assert_close(logprobs(result), logprobs(answer(sender, spec)), atol=2e-4, rtol=0)
    assert_same(receiver, sender, spec, 64)
    assert exporting.num_leases == pins(sender) == pins(receiver) == 0
    # The next one is read anew.
    other = sender.prefill(text(3, 60))
    assert answer(receiver, other, source(other)).tokens_loaded == 60
    assert len(made) == 2


@needs_cma
@pytest.mark.parametrize(("error", "num_read"), [(TransportFailed("not allowed"), 0), (NoBuffer("none is free"), 1)])
def test_what_cannot_be_read_is_sent(error: TransportFailed, num_read: int) -> None:
    """The next transfer as well, unless it was not for the other worker."""
    sender, receiver = driver_of(), driver_of()
    connect(receiver, sender, transport="cma")
    made = meddle(receiver, failing(error))
    for number in (2, 3):
        spec = sender.prefill(text(number, 150))
        assert answer(receiver, spec, source(spec)).tokens_loaded == 150
        assert_same(receiver, sender, spec, 150)
    copies = receiver.engine.tiers.tallying.totals()
    assert (copies.copies_cma.num, copies.copies_object_store.num) == (num_read, 2 - num_read)
    assert len(made) == 1


@needs_cma
@pytest.mark.parametrize("is_renewed", [True, False])
def test_what_is_read_after_its_lease_has_ended_is_not_used(is_renewed: bool) -> None:
    sender, receiver = driver_of(), driver_of()
    exporting = connect(receiver, sender, transport="cma")
    exporting._lease_s = 0.2

    def stall() -> None:
        if is_renewed:
            (lease,) = exporting._leases.values()
            lease.until_s += 100
        time.sleep(0.3)
        exporting.sweep()

    meddle(receiver, stall)
    spec = sender.prefill(text(2, 150))
    result = answer(receiver, spec, source(spec))
    assert result.tokens_loaded == (150 if is_renewed else 64)
    assert_same(receiver, sender, spec, 64)
    assert exporting.num_leases == pins(sender) == pins(receiver) == 0
