"""Between gRPC and the services: requests that cannot be read, errors, clients that leave, the end of the server."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from laban.actors.errors import InvalidInput, LabanError, Unavailable
from laban.cluster.callers import set_caller
from laban.cluster.door import Door
from laban.cluster.gateway_relay import Relay, Relayed
from laban.cluster.translate_errors import error_to_status, trailing_metadata

logger = logging.getLogger(__name__)

Unary = Callable[[Any, Any], Awaitable[Message]]
Streaming = Callable[[Any, Any], AsyncGenerator[Message, None]]


class Gate:
    """Runs the services' methods for those whom the door lets in. Every error leaves through `_abort`, and `close` ends
    what still runs."""

    def __init__(self, door: Door, relay: Relay | None = None) -> None:
        """With a `relay` calls about workflows may be another gateway's to answer."""
        self._door = door
        self._relay = relay
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def handler(self, service: ServiceDescriptor, servicer: Any) -> Any:
        """Serves each method of `service` by the servicer's method of the same name.

        A method takes the request and returns the response, or for a stream is an async generator of responses.
        The result is a grpc.GenericRpcHandler.
        """
        relay = self._relay if service.name == "Workflows" else None
        handlers: dict[str, Any] = {}
        for method in service.methods:
            behaviour = getattr(servicer, method.name)
            streaming = method.server_streaming
            if relay is None:
                answer = partial(_alone, behaviour)
            else:
                answer = partial(relay.stream if streaming else relay.unary, method, behaviour, servicer)
            make = grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
            handlers[method.name] = make(
                self._stream(method.name, answer) if streaming else self._unary(method.name, answer),
                request_deserializer=_reader(GetMessageClass(method.input_type)),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    async def close(self, grace_s: float) -> None:
        """Wait `grace_s` for calls to end, then end the rest: their clients see UNAVAILABLE."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    def _unary(self, method: str, behaviour: Unary) -> Callable[[Any, Any], Awaitable[Message]]:
        async def call(request: Message | DecodeError, context: Any) -> Message:
            response: Message = await self._guard(method, context, lambda: behaviour(_readable(request), context))
            return response

        return call

    def _stream(self, method: str, behaviour: Streaming) -> Callable[[Any, Any], Awaitable[None]]:
        async def call(request: Message | DecodeError, context: Any) -> None:
            async def send() -> None:
                # Closed here and now when the client leaves, not when the garbage collector comes by.
                async with aclosing(behaviour(_readable(request), context)) as responses:
                    async for response in responses:
                        # Waits while the client does not read: nothing piles up here.
                        await context.write(response)

            await self._guard(method, context, send)

        return call

    async def _guard(self, method: str, context: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task"
        self._tasks.add(task)
        try:
            if self._closing:
                raise Unavailable("the server is stopping")
            found = self._door.enter(method, context.invocation_metadata() or ())
            set_caller(found)
            with self._door.staying(found):
                return await work()
        except asyncio.CancelledError:
            if not self._closing or context.cancelled():
                raise
            task.uncancel()
            error: LabanError | Relayed = Unavailable("the server is stopping")
        except (LabanError, Relayed) as raised:
            error = raised
        except Exception:
            incident = uuid.uuid4().hex[:12]
            logger.exception("incident %s", incident)
            error = LabanError(f"an internal error; the gateway's log has it as incident {incident}")
        finally:
            self._tasks.discard(task)
        return await _abort(context, error)


async def _abort(context: Any, error: LabanError | Relayed) -> None:
    if isinstance(error, Relayed):
        await context.abort(error.code, error.message, error.trailing)
        return
    status = error_to_status(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, trailing_metadata(status))


def _alone(behaviour: Callable[[Any], Any], request: Message, context: object) -> Any:
    return behaviour(request)


def _reader(kind: type[Message]) -> Callable[[bytes], Message | DecodeError]:
    """Reads a request; what cannot be read is handed on as the error, since gRPC would answer UNKNOWN."""

    def read(data: bytes) -> Message | DecodeError:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            return error

    return read


def _readable(request: Message | DecodeError) -> Message:
    if isinstance(request, DecodeError):
        raise InvalidInput(f"the request cannot be read ({request}), expected valid protobuf with text in UTF-8")
    return request
