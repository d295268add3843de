"""The HTTP server of the OpenAI-compatible API, on a port of its own, in the control plane's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from laban.actors.errors import FailedPrecondition
from laban.cluster.door import Door
from laban.cluster.gateway import GatewayLimits, check_address
from laban.cluster.http.api import ChatsPort, OpenAiApi
from laban.cluster.http.connections import Connection
from laban.cluster.http.exchange import Exchanges
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.tls import ServerContext, ServerTls
from laban.cluster.traces import NO_TRACES, Traces

logger = logging.getLogger(__name__)

IDLE_S = 75  # that a connection is kept open between requests
START_S = 30.0


class _Server(uvicorn.Server):
    """The process has other work: signals are not for this one to take."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves the API over chats, in the event loop that `start` is awaited in."""

    def __init__(
        self,
        chats: ChatsPort,
        limits: GatewayLimits | None = None,
        *,
        why_not_ready: Callable[[], str] = lambda: "",
        door: Door | None = None,
        tls: ServerTls | None = None,
        meter: Meter = NO_METER,
        traces: Traces = NO_TRACES,
    ) -> None:
        """Without a door everybody may come in."""
        self._limits = limits or GatewayLimits()
        self._exchanges = Exchanges(
            door or Door(),
            meter,
            traces,
            max_body_bytes=self._limits.max_message_bytes,
            max_open=self._limits.max_concurrent_calls,
        )
        self._api = OpenAiApi(chats, self._exchanges, why_not_ready)
        self._tls = tls
        self._context: ServerContext | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Begin to serve; port 0 takes a free one. Returns the port.

        Raises InvalidInput for a port out of range or a host that is none, FailedPrecondition for a port in use,
        NotFound or InvalidInput for certificates.
        """
        if self._server is not None:
            raise FailedPrecondition("the HTTP server has been started before")
        check_address(host, port)
        config = uvicorn.Config(
            self._api.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="none",
            ws="none",
            http=Connection,
            server_header=False,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=1,
        )
        config.load()
        if self._tls is not None:
            self._context = ServerContext(self._tls)
            config.ssl = self._context
        listening = _listen(host, port)
        bound = int(listening.getsockname()[1])
        self._server = server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(server.serve([listening]))
        async with asyncio.timeout(START_S):
            while not server.started:
                if self._task.done():
                    await self._task
                    raise FailedPrecondition(f"cannot listen on {host}:{port}", field="port", value=port)
                await asyncio.sleep(0.005)
        logger.info("serving OpenAI's API on %s:%d", host, bound)
        return bound

    def refresh(self) -> None:
        """Take certificates that have been renewed."""
        if self._context is not None:
            self._context.refresh()

    async def stop(self, grace_s: float | None = None) -> None:
        """Let answers end for `grace_s`, then end them as UNAVAILABLE. A second stop does nothing."""
        server, self._server = self._server, None
        if server is None or self._task is None:
            return
        await self._exchanges.close(self._limits.grace_s if grace_s is None else grace_s)
        server.should_exit = True
        await self._task


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # Of connections taken from it, too; asyncio sees to that only where a socket says that it is TCP's, which this one
    # does not. Without it a stream's second event waits until the first is acknowledged, some 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
