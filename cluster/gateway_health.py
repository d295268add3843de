"""What anybody may ask of the gateway without a token: health checks, and reflection.

Nobody who asks holds anything up. grpc_health's own servicer writes to those who watch while it has the lock that a
change of the status needs: one client that never reads, and health is never told again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from laban.actors.errors import Exhausted

MAX_STREAMS = 64
"""Open at once, of each of the two services: more would take the places of calls that say who they are."""


class Few:
    """Streams of a service, up to MAX_STREAMS."""

    def __init__(self) -> None:
        self._num_open = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Raises Exhausted."""
        if self._num_open >= MAX_STREAMS:
            raise Exhausted(f"{MAX_STREAMS} streams are open, expected no more")
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 of the server as a whole, "", and of its services, which are as it is."""

    def __init__(self, services: Iterable[str]) -> None:
        self._names = {"", *services}
        self._ready, self._over = False, False
        self._changed = asyncio.Event()
        self._watches = Few()

    def set(self, ready: bool) -> None:
        """Nothing is said but by this, and nothing after `end`."""
        if ready != self._ready and not self._over:
            self._ready = ready
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """It is not ready any more."""
        self.set(False)
        self._over = True

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._of(request.service)

    async def Watch(self, request: Any, context: Any) -> None:
        try:
            with self._watches.one_more():
                last = None
                while True:
                    changed, now = self._changed, self._of(request.service)
                    if now != last:
                        await context.write(now)
                        last = now
                    await changed.wait()
        except Exhausted as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

    def _of(self, service: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if service not in self._names:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._ready else states.NOT_SERVING)


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    def __init__(self, services: Iterable[str]) -> None:
        super().__init__(services)
        self._streams = Few()

    async def ServerReflectionInfo(self, requests: AsyncIterable[Any], context: Any) -> AsyncIterator[Any]:
        try:
            with self._streams.one_more():
                async for answer in super().ServerReflectionInfo(requests, context):
                    yield answer
        except Exhausted as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))


def add_open_services(server: Any, health: Health, services: Iterable[str]) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*services, "grpc.health.v1.Health", reflection.SERVICE_NAME]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names), server)
