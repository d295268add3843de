"""Host pools that other workers read without the help of the one they belong to: who can, where they lie, and reading.

A lease says for how long what is read is what was lent (`actors/exporting.py`); nothing here knows of leases.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from laban.actors.engine.cma import CmaReader, can_attach, let_attach
from laban.actors.engine.copy_pieces import Pieces
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.windows import check_geometry, window_of
from laban.actors.errors import FailedPrecondition
from laban.actors.reach import Reach, Transport
from laban.actors.transfers import Refused, TransportFailed, Window

if TYPE_CHECKING:
    from laban.actors.engine.nixl_memory import NixlMemory

logger = logging.getLogger(__name__)

NIXL_MODULES = ("nixl", "nixl_cu13", "nixl_cu12")


class Reader(Protocol):
    """Of one other worker's pool, into one's own. For any thread, several at once."""

    def read(self, pieces: Pieces) -> None:
        """Pieces are (first slot there, first slot here, number of tokens): [num_pieces, 3]. Waits until all is here.

        Raises PeerLost if the other process is gone or does not answer, TransportFailed if its memory cannot be read
        like this. Once it has returned or raised nothing writes to those slots any more.
        """
        ...


class DirectMemory:
    """A worker's own pool, read by others and written to by its own readers. Methods may be called by any thread."""

    def __init__(self, pool: HostPool | None, transport: str = "auto") -> None:
        """`transport` is the first choice, `auto` takes what there is. Raises FailedPrecondition for one that is not
        there. Without a pool nothing is read."""
        self._pool = pool
        self.reach = Reach() if pool is None else reach_of(transport)
        self._nixl: NixlMemory | None = None
        self._lock = threading.Lock()
        if pool is not None and transport == "nixl":
            try:
                self._nixl_memory(pool)
            except (ImportError, RuntimeError) as error:
                raise FailedPrecondition(
                    f"NIXL does not start: {error}", field="cache.transport", value=transport
                ) from error

    def window(self, transport: Transport) -> Window | Refused:
        """For others to read by. The first one of NIXL takes seconds, which its libraries need to start."""
        pool = self._pool
        if pool is None or transport not in self.reach.transports:
            return Refused(f"it is not read by {transport}")
        agent = b""
        if transport == "cma":
            let_attach()
        else:
            try:
                agent = self._nixl_memory(pool).agent
            except Exception as error:  # of libraries, drivers, limits on locked memory
                logger.exception("NIXL does not start")
                return Refused(f"NIXL does not start: {error}")
        return window_of(pool, transport, agent)

    def reader(self, window: Window) -> Reader:
        """Raises PeerLost and TransportFailed."""
        assert self._pool is not None
        check_geometry(window, window_of(self._pool, window.transport))
        if window.transport == "cma":
            return CmaReader(window, self._pool)
        try:
            return self._nixl_memory(self._pool).reader(window)
        except (ImportError, RuntimeError) as error:
            raise TransportFailed(f"NIXL does not start: {error}") from error

    def close(self) -> None:
        with self._lock:
            if self._nixl is not None:
                self._nixl.close()
                self._nixl = None

    def _nixl_memory(self, pool: HostPool) -> NixlMemory:
        with self._lock:
            if self._nixl is None:
                from laban.actors.engine.nixl_memory import NixlMemory

                self._nixl = NixlMemory(pool)
            return self._nixl


def reach_of(transport: str) -> Reach:
    """Raises FailedPrecondition for a transport that this machine or installation does not have."""
    has_nixl = any(importlib.util.find_spec(name) is not None for name in NIXL_MODULES)
    if transport == "nixl" and not has_nixl:
        raise FailedPrecondition(
            "NIXL is not installed, expected the extra of that name: pip install 'laban[nixl]'",
            field="cache.transport", value=transport,
        )  # fmt: skip
    if transport == "cma" and (why := can_attach()):
        raise FailedPrecondition(f"this machine does not allow it: {why}", field="cache.transport", value=transport)
    there: dict[str, Callable[[], bool]] = {"cma": lambda: not can_attach(), "nixl": lambda: has_nixl}
    wanted: tuple[Transport, ...] = ("cma", "nixl")
    offered = tuple(each for each in wanted if transport in ("auto", each) and there[each]())
    return Reach(machine_name(), (*offered, "object_store"))


def machine_name() -> str:
    """The same for processes that see each other in /proc and belong to one user; "" where there is no telling."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        seen = f"{os.uname().nodename}/{boot}/{os.readlink('/proc/self/ns/pid')}/{os.getuid()}"
    except OSError:
        return ""
    return hashlib.sha256(seen.encode()).hexdigest()[:16]
