"""A worker's line: its calls and reports over a socket, between two processes of one machine.

What goes both ways for every call would otherwise go through Ray, whose calls take some 2 ms each way and as much of a
core. The socket is a Unix one of Linux's abstract names: no file is left when a process dies, no port is open, and both
ends see to it that the other one is of the same user, for what comes is unpickled. Who cannot connect is on another
machine, and keeps to Ray.

A frame is its length and a pickle. To the worker go (order, argument), and empty frames: each asks for one report more.
From it come reports, in order, and a LineFailure at the end if its engine failed. If anything is wrong with either end
the connection closes, and whoever reads the reports takes the worker for lost.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import secrets
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from laban.actors.calls import WorkerReport
from laban.actors.worker import WorkerLoop

logger = logging.getLogger(__name__)

LENGTH = struct.Struct("!Q")
PEER = struct.Struct("3i")  # of SO_PEERCRED: process, user, group
REPORTS_IN_FLIGHT = 4
"""Reports on their way to the reader; past that they are merged at the worker."""
CONNECT_S = 5.0

Order = Literal["submit", "abort", "advise"]


@dataclass(frozen=True, slots=True)
class LineFailure:
    """The engine failed: no report follows."""

    reason: str


class LineServer:
    """At the worker: one thread waits for connections, two serve each. The newest one gets the reports."""

    def __init__(self, loop: WorkerLoop) -> None:
        """Raises OSError where there are no such sockets."""
        if sys.platform != "linux":
            raise OSError("abstract names of sockets are Linux's")
        self._loop = loop
        self._orders: Mapping[str, Callable[[Any], None]] = {
            "submit": loop.submit,
            "abort": loop.abort,
            "advise": loop.advise,
        }
        self.address = f"\0laban-{secrets.token_hex(16)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.address)
        self._socket.listen()
        _start(self._accept)

    def close(self) -> None:
        """Connections that there are stay."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits
        self._socket.close()

    def _accept(self) -> None:
        """Until it is closed. Whatever else ends it closes it: who connects then is refused, and keeps to Ray."""
        try:
            while True:
                connection, _ = self._socket.accept()
                if _is_own(connection):
                    _start(self._take_orders, connection)
                else:
                    logger.warning("another user's process tried to reach the worker")
                    connection.close()
        except OSError as error:
            if self._socket.fileno() >= 0 and error.errno != errno.EINVAL:  # what `close` wakes it with
                logger.warning("the worker takes no more connections: %s", error)
        finally:
            self._socket.close()

    def _take_orders(self, connection: socket.socket) -> None:
        wanted = threading.Semaphore(0)
        reports = _start(self._send_reports, connection, wanted)
        try:
            while (frame := _read(connection)) is not None:
                if frame:
                    order, argument = pickle.loads(frame)
                    self._orders[order](argument)
                else:
                    wanted.release()
        except OSError:
            logger.debug("who gave orders has left")
        except Exception:
            logger.exception("the worker did not take an order")
        finally:
            _shut(connection)
            wanted.release()
            reports.join()
            connection.close()

    def _send_reports(self, connection: socket.socket, wanted: threading.Semaphore) -> None:
        reports = self._loop.reports()

        def following() -> WorkerReport | LineFailure | None:
            try:
                return next(reports, None)
            except Exception as error:  # the engine's own, an OSError among them
                return LineFailure(repr(error))

        try:
            while wanted.acquire() and (report := following()) is not None:
                _write(connection, report)
                if isinstance(report, LineFailure):
                    return
        except OSError:
            logger.debug("who was reported to has left")
        finally:
            _shut(connection)


class Line(asyncio.Protocol):
    """At the control plane: lives in one event loop."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._arrived = bytearray()
        self._reports: deque[WorkerReport | LineFailure] = deque()
        self._changed = asyncio.Event()
        self._is_open = True
        self._readers = 0

    @classmethod
    async def connect(cls, address: str) -> Line | None:
        """None if nobody is there: the worker is on another machine, or gone."""
        try:
            async with asyncio.timeout(CONNECT_S):
                transport, line = await asyncio.get_running_loop().create_unix_connection(cls, address)
        except OSError:  # TimeoutError is one
            return None
        if _is_own(transport.get_extra_info("socket")):
            return line
        transport.abort()
        return None

    @property
    def is_open(self) -> bool:
        return self._is_open

    def send(self, order: Order, argument: object) -> None:
        """In the order of the calls. Does not block; what comes once the worker is gone is dropped. Raises what
        pickling does."""
        self._send(pickle.dumps((order, argument), pickle.HIGHEST_PROTOCOL))

    async def reports(self) -> AsyncGenerator[WorkerReport | LineFailure, None]:
        """As they come; ends with the connection. A new reader displaces the old, and goes on where that one was."""
        if not self._readers:
            for _ in range(REPORTS_IN_FLIGHT):
                self._send(b"")
        self._readers += 1
        reader = self._readers
        self._changed.set()
        while reader == self._readers:
            if self._reports:
                report = self._reports.popleft()
                self._send(b"")
                yield report
            elif self._is_open:
                self._changed.clear()
                await self._changed.wait()
            else:
                return

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        at = 0
        while len(self._arrived) >= at + LENGTH.size:
            begin = at + LENGTH.size
            end = begin + LENGTH.unpack_from(self._arrived, at)[0]
            if len(self._arrived) < end:
                break
            self._reports.append(pickle.loads(memoryview(self._arrived)[begin:end]))
            at = end
        if at:
            del self._arrived[:at]
            self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_open = False
        self._changed.set()

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(LENGTH.pack(len(frame)) + frame)


def _start(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, name="line", daemon=True)
    thread.start()
    return thread


def _is_own(connection: socket.socket) -> bool:
    """Whether who is at the other end runs as the same user."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    user: int = PEER.unpack(peer)[1]
    return user == os.getuid()


def _read(connection: socket.socket) -> bytes | None:
    """A frame; None at the end."""
    length = _receive(connection, LENGTH.size)
    return None if length is None else _receive(connection, LENGTH.unpack(length)[0])


def _receive(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    at = 0
    while at < size:
        got = connection.recv_into(memoryview(data)[at:])
        if not got:
            return None
        at += got
    return bytes(data)


def _write(connection: socket.socket, frame: object) -> None:
    data = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    connection.sendall(LENGTH.pack(len(data)) + data)


def _shut(connection: socket.socket) -> None:
    """Both of its threads, and the other end, see that it is over."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
