"""What NIXL's readers share: buffers, of which some are given up on, and the agents of others. The library is a
stand-in here, whose reads end when a test says so; with the real one they are in test_direct.py."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from laban.actors.engine import nixl_memory
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.nixl_memory import NixlMemory
from laban.actors.engine.windows import window_of
from laban.actors.transfers import NoBuffer, PeerLost

ONE_TOKEN = np.array([[0, 0, 1]], np.int64)
NUM_BUFFERS = 3


class Agent:
    def __init__(self, name: str, config: object) -> None:
        self.name, self.state = name, "DONE"
        self.removed: list[str] = []
        self.failing_registrations = 0

    def register_memory(self, places: list[tuple[int, int, int, str]], kind: str, backends: list[str]) -> object:
        if self.failing_registrations:
            self.failing_registrations -= 1
            raise RuntimeError("the limit on locked memory")
        return object()

    def get_agent_metadata(self) -> bytes:
        return b"own"

    def add_remote_agent(self, agent: bytes) -> bytes:
        return agent

    def remove_remote_agent(self, name: str) -> None:
        self.removed.append(name)

    def get_xfer_descs(self, places: object, kind: str) -> object:
        return places

    def initialize_xfer(self, *arguments: object, backends: list[str]) -> object:
        return object()

    def transfer(self, transfer: object) -> str:
        return self.state

    def check_xfer_state(self, transfer: object) -> str:
        return self.state

    def release_xfer_handle(self, transfer: object) -> None:
        pass


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def memory(timeout_s: float = 5.0) -> NixlMemory:
        pool = HostPool(4, 16, 2, 1, 8, torch.float32, pinned=False)
        return NixlMemory(pool, timeout_s=timeout_s, buffer_bytes=1 << 12)

    library = SimpleNamespace(nixl_agent=Agent, nixl_agent_config=lambda **options: options)
    monkeypatch.setattr(nixl_memory, "_import", lambda: library)
    monkeypatch.setattr(nixl_memory, "MOST_BUFFERS", NUM_BUFFERS)
    return memory


def test_a_reader_may_be_collected_by_who_holds_the_lock(make: Callable[..., Any]) -> None:
    memory = make()
    kept, gone = (memory.reader(window_of(memory.pool, "nixl", name)) for name in (b"kept", b"gone"))
    gone.cycle = gone
    del gone

    def collect() -> None:
        with memory.lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for itself"
    memory.give_buffer(memory.take_buffer())
    assert memory.api.removed == ["gone"]
    kept.read(ONE_TOKEN)


def test_when_no_buffer_is_left_it_is_told_at_once_and_no_worker_is_held_lost(make: Callable[..., Any]) -> None:
    memory = make(timeout_s=0.05)
    reader = memory.reader(window_of(memory.pool, "nixl", b"other"))
    memory.api.state = "PROC"
    for _ in range(NUM_BUFFERS):
        with pytest.raises(PeerLost):
            reader.read(ONE_TOKEN)
    memory.timeout_s = 20.0
    began_s = time.monotonic()
    with pytest.raises(NoBuffer):
        reader.read(ONE_TOKEN)
    assert time.monotonic() - began_s < 10
    # Those that are read into come back.
    memory.api.state = "DONE"
    memory._take_back()
    memory._aside[0].until_s = 0.0
    reader.read(ONE_TOKEN)


def test_a_buffer_that_is_not_taken_costs_none(make: Callable[..., Any]) -> None:
    memory = make()
    memory.api.failing_registrations = NUM_BUFFERS
    for _ in range(NUM_BUFFERS):
        with pytest.raises(NoBuffer, match="locked memory"):
            memory.take_buffer()
    taken = [memory.take_buffer() for _ in range(NUM_BUFFERS)]
    assert len({buffer.room.ctypes.data for buffer in taken}) == NUM_BUFFERS
    memory.timeout_s = 0.05
    with pytest.raises(NoBuffer):
        memory.take_buffer()
