"""One-sided reads by NVIDIA's NIXL (over UCX: RDMA where there is any, TCP elsewhere). Imported where it is used.

A worker's host pool is made known to NIXL once, as a whole; others read from it what is lent to them. What is read
comes into buffers of the reader's own first, and is copied from there. So a read that never ends, because the other's
machine is gone or stands still, costs a buffer, and no page of the pool is ever written to late.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from laban.actors.engine.copy_pieces import Pieces, cut
from laban.actors.engine.host_pool import HostPool, bytes_of
from laban.actors.engine.windows import check_slots, spans, window_of
from laban.actors.transfers import NoBuffer, PeerLost, TransportFailed, Window

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 8.0
"""Of a chunk. As long as an answer of another worker is waited for elsewhere."""
BUFFER_BYTES = 16 << 20
MOST_BUFFERS = 16
"""That are read into and copied out of at once, or that reads were given up on."""
ASIDE_S = 30.0
"""A buffer is not used for so long after a read into it failed."""
QUICK_S, SHORT_S = 0.002, 0.0002
MODULES = ("nixl._api", "nixl_cu13._api", "nixl_cu12._api")
DISCONNECTED = ("nixlRemoteDisconnectError", "nixlNotFoundError", "nixlCancelledError")


class NixlMemory:
    """This process's agent: the pool that others read, and readers of theirs. Methods are for any thread."""

    def __init__(self, pool: HostPool, *, timeout_s: float = READ_TIMEOUT_S, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Takes seconds, for libraries. Raises ImportError if there are none, RuntimeError if they do not work here."""
        self.pool, self.own = pool, window_of(pool, "nixl")
        self.timeout_s, self.buffer_bytes = timeout_s, max(buffer_bytes, pool.bytes_per_token)
        api = _import()
        self.lock = threading.Lock()
        try:
            config = api.nixl_agent_config(enable_prog_thread=True, backends=["UCX"])
            self.api = api.nixl_agent(f"laban-{os.getpid()}-{uuid4().hex[:12]}", config)
            half = self.own.num_layers * self.own.num_slots * self.own.row_bytes
            planes = [(at, half, 0, "") for at in (self.own.keys, self.own.values)]
            self._registered = self.api.register_memory(planes, "DRAM", backends=["UCX"])
            self.agent: bytes = self.api.get_agent_metadata()  # of the pool alone: nobody reads the buffers
        except Exception as error:
            raise RuntimeError(str(error)) from error
        self._free: list[_Buffer] = []
        self._num_buffers = 0
        self._aside: list[_Aside] = []
        self._readers: Counter[str] = Counter()  # by the other agent's name
        self.gone: deque[str] = deque()  # agents' names, of readers that are no more; added to without the lock
        logger.info("NIXL serves %.1f GiB of host memory as %s", 2 * half / 2**30, self.api.name)

    def reader(self, window: Window) -> NixlReader:
        """Raises TransportFailed."""
        with self.lock:
            self._forget_gone()
            try:
                name = self.api.add_remote_agent(window.agent)
            except Exception as error:
                raise TransportFailed(f"NIXL does not take its agent: {error}") from error
            name = name.decode() if isinstance(name, bytes) else name
            self._readers[name] += 1
        return NixlReader(self, window, name)

    def take_buffer(self) -> _Buffer:
        """Waits for one that is free. Raises NoBuffer if reads were given up on in all of them, or there is no memory
        for one."""
        give_up_s = time.monotonic() + self.timeout_s
        while True:
            with self.lock:
                self._forget_gone()
                self._take_back()
                if self._free:
                    return self._free.pop()
                if self._num_buffers < MOST_BUFFERS:
                    return self._new_buffer()
                is_hopeless = len(self._aside) == self._num_buffers
            if is_hopeless or time.monotonic() > give_up_s:
                raise NoBuffer("all of NIXL's buffers wait for workers that do not answer")
            time.sleep(SHORT_S)

    def give_buffer(self, buffer: _Buffer) -> None:
        with self.lock:
            self._free.append(buffer)

    def put_aside(self, transfer: Any, buffer: _Buffer) -> None:
        """After a read that has failed, or goes on: something may still come into the buffer."""
        with self.lock:
            self._aside.append(_Aside(transfer, buffer))

    def _new_buffer(self) -> _Buffer:
        try:
            room = np.zeros(self.buffer_bytes, np.uint8)
            registered = self.api.register_memory([(room.ctypes.data, len(room), 0, "")], "DRAM", backends=["UCX"])
        except Exception as error:  # no memory, or a limit on what is locked
            raise NoBuffer(f"NIXL does not take a buffer of {self.buffer_bytes} bytes: {error}") from error
        self._num_buffers += 1
        return _Buffer(room, registered)

    def _forget_gone(self) -> None:
        while self.gone:
            name = self.gone.popleft()
            self._readers[name] -= 1
            if not self._readers[name]:
                del self._readers[name]
                _quietly(partial(self.api.remove_remote_agent, name))

    def _take_back(self) -> None:
        now_s = time.monotonic()
        for each in list(self._aside):
            if each.until_s is None and (each.transfer is None or _state(self.api, each.transfer) != "PROC"):
                _quietly(partial(self.api.release_xfer_handle, each.transfer))
                each.transfer, each.until_s = None, now_s + ASIDE_S
            elif each.until_s is not None and now_s > each.until_s:
                self._aside.remove(each)
                self._free.append(each.buffer)

    def close(self) -> None:
        """Nobody reads the pool any more, and no reader of this reads."""
        with self.lock:
            for buffer in self._free:
                _quietly(partial(self.api.deregister_memory, buffer.registered))
            self._free = []
            _quietly(partial(self.api.deregister_memory, self._registered))


class NixlReader:
    """Implements Reader."""

    def __init__(self, memory: NixlMemory, window: Window, name: str) -> None:
        self._memory, self._window, self._name = memory, window, name
        # The collector may run this in a thread that holds the lock.
        weakref.finalize(self, memory.gone.append, name)

    def read(self, pieces: Pieces) -> None:
        memory = self._memory
        check_slots(pieces, self._window, memory.own)
        for part in _parts(pieces, memory.buffer_bytes // memory.pool.bytes_per_token):
            buffer = memory.take_buffer()
            if self._fill(buffer, part):
                self._spread(buffer, part)
                memory.give_buffer(buffer)
            else:
                raise PeerLost(f"nothing came by NIXL for {memory.timeout_s:g} s")

    def _fill(self, buffer: _Buffer, part: Pieces) -> bool:
        """Reads into the buffer; False if that has not ended, and the buffer is not to be used again."""
        memory, api = self._memory, self._memory.api
        there = spans(self._window, part[:, 0], part[:, 2])
        here = np.empty_like(there)
        here[:, 0] = buffer.room.ctypes.data + there[:, 1].cumsum() - there[:, 1]
        here[:, 1] = there[:, 1]
        transfer = None
        try:
            with memory.lock:
                lists = (api.get_xfer_descs(_described(each), "DRAM") for each in (here, there))
                transfer = api.initialize_xfer("READ", *lists, self._name, backends=["UCX"])
                state = api.transfer(transfer)
            began_s = time.monotonic()
            while state == "PROC":
                waited_s = time.monotonic() - began_s
                if waited_s > memory.timeout_s:
                    memory.put_aside(transfer, buffer)
                    return False
                time.sleep(0 if waited_s < QUICK_S else SHORT_S)
                with memory.lock:
                    state = api.check_xfer_state(transfer)
        except Exception as error:
            memory.put_aside(transfer, buffer)
            lost = type(error).__name__ in DISCONNECTED
            raise (PeerLost if lost else TransportFailed)(f"NIXL: {error}") from error
        with memory.lock:
            _quietly(lambda: api.release_xfer_handle(transfer))
        if state != "DONE":
            memory.put_aside(None, buffer)
            raise TransportFailed(f"NIXL ends with {state}, expected DONE")
        return True

    def _spread(self, buffer: _Buffer, part: Pieces) -> None:
        """From the buffer to the pool: [2, num_layers, pieces in order, row_bytes]."""
        own = self._memory.own
        num_tokens = int(part[:, 2].sum())
        size = 2 * own.num_layers * num_tokens * own.row_bytes
        # Within a layer the pieces lie one after another.
        rows = buffer.room[:size].reshape(2, own.num_layers, num_tokens, own.row_bytes)
        for plane, pool in enumerate((self._memory.pool.k, self._memory.pool.v)):
            to, at = bytes_of(pool), 0
            for _, first, length in part.tolist():
                to[:, first : first + length] = rows[plane, :, at : at + length]
                at += length


@dataclass(slots=True, eq=False)
class _Buffer:
    room: NDArray[np.uint8]
    registered: Any


@dataclass(slots=True, eq=False)
class _Aside:
    transfer: Any  # None once it has been let go
    buffer: _Buffer
    until_s: float | None = None  # once it has ended: then the buffer is used again


def _import() -> Any:
    """Raises ImportError."""
    problem: ImportError | None = None
    for name in MODULES:
        try:
            found = importlib.import_module(name)
            logging.getLogger("nixl").setLevel(logging.WARNING)  # it has a format and a handler of its own
            return found
        except ImportError as error:
            problem = problem or error
    raise ImportError(f"NIXL cannot be imported: {problem}") from problem


def _parts(pieces: Pieces, max_tokens: int) -> list[Pieces]:
    """Each of at most so many tokens."""
    parts: list[Pieces] = []
    begin = held = 0
    pieces = cut(pieces, max_tokens)
    for number, length in enumerate(pieces[:, 2].tolist()):
        if held + length > max_tokens:
            parts.append(pieces[begin:number])
            begin, held = number, 0
        held += length
    return [*parts, pieces[begin:]]


def _described(places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """As NIXL has them: address, size, device."""
    return np.concatenate([places, np.zeros((len(places), 1), np.uint64)], axis=1)


def _state(api: Any, transfer: Any) -> str:
    """Of a read that was given up on. What cannot be asked about is over, as one that failed is."""
    try:
        return str(api.check_xfer_state(transfer))
    except Exception:
        return "ERR"


def _quietly(act: Callable[[], object]) -> None:
    """What fails because the other is gone already."""
    try:
        act()
    except Exception as error:
        logger.debug("NIXL: %s", error)
