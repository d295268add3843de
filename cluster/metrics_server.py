"""Metrics and health over plain HTTP, on a port of their own: /metrics, /healthz, /readyz.

Answered by the control plane's event loop, so that an answer says that the loop runs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TypeVar

from laban.actors.errors import FailedPrecondition
from laban.cluster.config import MetricsSection
from laban.cluster.gateway import check_address
from laban.cluster.http.section import HttpSection
from laban.cluster.instruments import Instruments

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
MAX_CONNECTIONS = 64
TIMEOUT_S = 5.0
PLAIN = "text/plain; charset=utf-8"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

S = TypeVar("S", MetricsSection, HttpSection)
Answer = tuple[int, str, bytes]
"""Status, content type, body."""


def settled(metrics: S, others: Collection[int | None] = ()) -> S:
    """With the port that it will be on this machine: the default gives way to a free one where it is taken, or will be
    by what listens on `others`.

    Raises InvalidInput for the host, FailedPrecondition for a port that was asked for and is taken.
    """
    if metrics.port is None:
        return metrics
    is_chosen = "port" in metrics.model_fields_set
    try:
        check_address(metrics.host, metrics.port)
        wanted = metrics.port if is_chosen or metrics.port not in others else 0
    except FailedPrecondition:
        if is_chosen:
            raise
        wanted = 0
    return metrics.model_copy(update={"port": wanted or _free_port(metrics.host)})


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


class MetricsServer:
    """One request a connection. `ready` says why the control plane is not ready; "" if it is."""

    def __init__(self, ready: Callable[[], str]) -> None:
        self._ready = ready
        self._instruments: Instruments | None = None
        self._server: asyncio.Server | None = None
        self._num_open = 0

    async def start(self, host: str, port: int) -> int:
        """Port 0 takes a free one. Returns the port. Raises FailedPrecondition if it cannot listen there."""
        try:
            self._server = await asyncio.start_server(self._serve, host or None, port, limit=MAX_HEAD_BYTES)
        except OSError as error:
            where = f"cannot listen on {host}:{port} ({error.strerror or error})"
            raise FailedPrecondition(where, field="metrics.port", value=port) from None
        bound = int(self._server.sockets[0].getsockname()[1])
        logger.info("metrics and health on %s:%d", host, bound)
        return bound

    def show(self, instruments: Instruments) -> None:
        """Before there are any, there are no metrics."""
        self._instruments = instruments

    async def stop(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_open += 1
        try:
            if self._num_open <= MAX_CONNECTIONS:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._answer(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked is slow, gone or confused
        finally:
            self._num_open -= 1
            writer.close()
            with suppress(Exception):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, _, rest = head[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        fields = dict(line.lower().split(":", 1) for line in head[1:] if ":" in line)
        pages: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/metrics": lambda: self._metrics(fields.get("accept", "").strip()),
            "/healthz": self._alive,
            "/readyz": self._is_ready,
        }
        if method not in ("GET", "HEAD"):
            status, kind, body = 405, PLAIN, b"expected GET\n"
        elif path not in pages:
            status, kind, body = 404, PLAIN, f"expected one of {' '.join(pages)}\n".encode()
        else:
            status, kind, body = await pages[path]()
        writer.write(
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
        )
        writer.write(b"" if method == "HEAD" else body)
        await writer.drain()

    async def _metrics(self, accept: str) -> Answer:
        instruments = self._instruments
        if instruments is None:
            return 200, PLAIN, b""
        instruments.look()
        body, kind = await asyncio.to_thread(instruments.render, accept)
        return 200, kind, body

    async def _alive(self) -> Answer:
        return 200, PLAIN, b"alive\n"

    async def _is_ready(self) -> Answer:
        why = self._ready()
        return (503, PLAIN, f"{why}\n".encode()) if why else (200, PLAIN, b"ready\n")
