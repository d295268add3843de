"""Counts the gateway's requests, by method and status, and traces them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from laban.cluster.meter import Meter
from laban.cluster.traces import Traces

PREFIX = "/laban.v1."  # health checks and reflection are nobody's requests


class MeteredRequests(aio.ServerInterceptor):  # type: ignore[misc]
    """Tells of every request of our own API, streams included."""

    def __init__(self, meter: Meter, traces: Traces) -> None:
        self._meter, self._traces = meter, traces

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(PREFIX):
            return handler
        method = details.method.removeprefix(PREFIX)
        streaming = handler.unary_stream is not None
        make = grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        return make(
            self._metered(method, handler.unary_stream or handler.unary_unary, streaming),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _metered(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]], streaming: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            began_s, code = time.perf_counter(), "OK"
            self._meter.request_begun(method)
            traced = self._traces.request_begun(method, context.invocation_metadata() or ())
            try:
                return await behaviour(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except BaseException:
                code = _name_of(context.code())
                raise
            finally:
                self._traces.request_ended(traced, code)
                self._meter.request_ended(method, code, None if streaming else time.perf_counter() - began_s)

        return call


def _name_of(code: Any) -> str:
    """gRPC gives a StatusCode, its number, or 0 where nobody set one: then the handler raised."""
    known = next((each for each in grpc.StatusCode if code in (each, each.value[0])), grpc.StatusCode.UNKNOWN)
    return "UNKNOWN" if known is grpc.StatusCode.OK else str(known.name)
