"""One request over HTTP: who asks, how it ends, whether the client is still there."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from laban.actors.errors import Cancelled, Exhausted, LabanError, Unavailable
from laban.cluster.callers import set_caller
from laban.cluster.door import Door
from laban.cluster.http.errors import Refused, error_response
from laban.cluster.meter import Meter
from laban.cluster.traces import Traces

logger = logging.getLogger(__name__)

BODY_TIMEOUT_S = 60.0  # for a request to come in
STOPPING = "the server is stopping"
T = TypeVar("T")


class Exchange:
    """A request that has been let in. `code` is what is counted: the name of a gRPC status."""

    def __init__(self, request: Request, send: Send, max_body_bytes: int) -> None:
        self.request = request
        self.send = send
        self.code = "OK"
        self.begun = False  # to be answered, as a stream
        self._max_body_bytes = max_body_bytes

    async def body(self) -> bytes:
        """Raises Refused for one that is too large or too slow, Cancelled if the client leaves."""
        most, found = self._max_body_bytes, bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in self.request.stream():
                    found += part
                    if len(found) > most:
                        raise Refused(f"the body is larger than {most} bytes", http_status=413, code="too_large")
        except TimeoutError:
            raise Refused(f"the body took more than {BODY_TIMEOUT_S:g} s", http_status=408, code="timeout") from None
        except ClientDisconnect:
            raise Cancelled("the client has left") from None
        return bytes(found)

    async def while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives; it is cancelled, and Cancelled raised, when the client leaves."""
        working, leaving = asyncio.create_task(work), asyncio.create_task(self._left())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return await working
            raise Cancelled("the client has left")
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _left(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            continue


Handler = Callable[[Exchange], Awaitable[Response | None]]
"""Gives the response, or None if it has sent it."""


class Exchanges:
    """All that is being answered: the door, the counts and the end of the server, as `Gate` has them for gRPC."""

    def __init__(self, door: Door, meter: Meter, traces: Traces, *, max_body_bytes: int, max_open: int) -> None:
        self._door, self._meter, self._traces = door, meter, traces
        self._max_body_bytes, self._max_open = max_body_bytes, max_open
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closing = False

    def app(self, method: str, handler: Handler) -> Any:
        """An ASGI app. `method` is what the door, metrics and traces call it."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await self._answer(method, handler, scope, receive, send)

        return _App(answer)

    async def close(self, grace_s: float) -> None:
        """Refuse requests, wait `grace_s` for answers to end, then end the rest."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    async def _answer(self, method: str, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None, "the server runs each request in a task"
        exchange = Exchange(Request(scope, receive), send, self._max_body_bytes)
        name, began_s = f"OpenAI/{method}", time.perf_counter()
        metadata = list(exchange.request.headers.items())
        self._meter.request_begun(name)
        traced = self._traces.request_begun(name, metadata)
        self._tasks.add(task)
        response: Response | None = None
        try:
            if self.closing:
                raise Unavailable(STOPPING)
            if len(self._tasks) > self._max_open:
                raise Exhausted(f"{self._max_open} requests are being answered, expected no more")
            found = self._door.enter(method, metadata)
            set_caller(found)
            with self._door.staying(found):
                response = await handler(exchange)
        except asyncio.CancelledError:
            if not self.closing:
                exchange.code = "CANCELLED"
                raise
            task.uncancel()
            exchange.code = "UNAVAILABLE"
            response = None if exchange.begun else error_response(Unavailable(STOPPING))
        except LabanError as error:
            exchange.code = error.status
            response = None if isinstance(error, Cancelled) else error_response(error)
        except Exception as error:
            exchange.code, response = "INTERNAL", error_response(incident_of(error))
        finally:
            self._tasks.discard(task)
            self._traces.request_ended(traced, exchange.code)
            self._meter.request_ended(name, exchange.code, time.perf_counter() - began_s)
        if response is not None:
            await response(scope, receive, send)


class _App:
    """Starlette takes what is no function for an ASGI app."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


def incident_of(error: Exception) -> LabanError:
    """For a bug, which the log has."""
    incident = uuid.uuid4().hex[:12]
    logger.error("incident %s", incident, exc_info=error)
    return LabanError(f"an internal error; the server's log has it as incident {incident}")
