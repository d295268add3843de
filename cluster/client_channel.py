"""Connections of the clients: stubs, and errors made LabanErrors again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

import grpc
from grpc import aio

from laban.actors.errors import LabanError, Unavailable
from laban.cluster.client_credentials import Credentials, SyncIdentity, aio_identity
from laban.cluster.client_requests import checked_address
from laban.cluster.client_sizes import too_large
from laban.cluster.client_trace import MAY_TRACE
from laban.cluster.translate_errors import STATUS_KEY, error_from_status
from laban.proto import laban_pb2_grpc as pb_grpc

STOP_EVERY_S = 0.1
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # two minutes otherwise
]


class SyncChannel:
    """One connection, opened when first needed."""

    def __init__(self, address: str, timeout_s: float | None, credentials: Credentials) -> None:
        self.address = checked_address(address)
        self.timeout_s = timeout_s
        secret = credentials.of_channel()
        if secret is None:
            self._channel = grpc.insecure_channel(self.address, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(self.address, secret, options=OPTIONS)
        if credentials.metadata or MAY_TRACE:
            self._channel = grpc.intercept_channel(self._channel, SyncIdentity(credentials.metadata))
        self.workflows: Any = pb_grpc.WorkflowsStub(self._channel)  # type: ignore[no-untyped-call]
        self.choreography: Any = pb_grpc.ChoreographyStub(self._channel)  # type: ignore[no-untyped-call]
        self.cluster: Any = pb_grpc.ClusterStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._channel.close()

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """A call under the channel's deadline."""
        return self.call_within(method, request, self.timeout_s)

    def call_within(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _laban_error(error, self.address, request) from None

    def call_unless(self, stop: threading.Event, method: Any, request: Any, timeout_s: float | None) -> Any:
        """A call that is given up, with None, once `stop` is set."""
        call = method.future(request, timeout=timeout_s)
        try:
            while not stop.is_set():
                with contextlib.suppress(grpc.FutureTimeoutError):
                    return call.result(timeout=STOP_EVERY_S)
            return None
        except grpc.RpcError as error:
            raise _laban_error(error, self.address, request) from None
        finally:
            call.cancel()

    def items(self, call: Any, request: Any = None) -> Generator[Any, None, None]:
        """The responses of a stream that `request` began; closing it cancels the call."""
        try:
            yield from call
        except grpc.RpcError as error:
            raise _laban_error(error, self.address, request) from None
        finally:
            call.cancel()


class AsyncChannel:
    """One connection, opened when first needed, since it belongs to the event loop it was opened in."""

    def __init__(self, address: str, timeout_s: float | None, credentials: Credentials) -> None:
        self.address = checked_address(address)
        self.timeout_s = timeout_s
        self._secret = credentials.of_channel()
        self._metadata = credentials.metadata
        self._opened: aio.Channel | None = None

    async def close(self) -> None:
        channel, self._opened = self._opened, None
        if channel is not None:
            await channel.close(None)

    @property
    def workflows(self) -> Any:
        return pb_grpc.WorkflowsStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def choreography(self) -> Any:
        return pb_grpc.ChoreographyStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def cluster(self) -> Any:
        return pb_grpc.ClusterStub(self._channel)  # type: ignore[no-untyped-call]

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """A call under the channel's deadline."""
        return await self.call_within(method, request, self.timeout_s)

    async def call_within(self, method: Callable[..., Awaitable[Any]], request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=timeout_s)
        except aio.AioRpcError as error:
            raise _laban_error(error, self.address, request) from None

    async def items(self, call: Any, request: Any = None) -> AsyncGenerator[Any, None]:
        """The responses of a stream that `request` began; closing it cancels the call."""
        try:
            async for item in call:
                yield item
        except aio.AioRpcError as error:
            raise _laban_error(error, self.address, request) from None
        finally:
            call.cancel()

    @property
    def _channel(self) -> aio.Channel:
        if self._opened is None:
            named = aio_identity(self._metadata)
            if self._secret is None:
                self._opened = aio.insecure_channel(self.address, options=OPTIONS, interceptors=named)
            else:
                self._opened = aio.secure_channel(self.address, self._secret, options=OPTIONS, interceptors=named)
        return self._opened


def _laban_error(error: Any, address: str, request: Any) -> LabanError:
    trailing = tuple(error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and all(key != STATUS_KEY for key, _ in trailing):
        return Unavailable(f"cannot reach {address} ({error.details()})")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and (found := too_large(error.details() or "", request)):
        return found
    return error_from_status(error.code(), error.details() or "", trailing)
