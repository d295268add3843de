"""Calls about workflows that another Laban has go to its gateway, with the caller's own credentials, and back.

So the second one asks the caller's own token who that is, as of anybody, and trusts no gateway's word for it. A call is
passed on once: the second gateway answers what it can by itself. A watch outlives who it was passed on to: it
goes on, behind the last event, where the workflow went.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from laban.actors.errors import Unavailable
from laban.cluster.callers import caller
from laban.cluster.claims import KeyTaken
from laban.cluster.gateway_channels import PeerChannels
from laban.cluster.shelf import Shelf
from laban.cluster.switchboard import Place, Shown, Switchboard, There
from laban.cluster.tls import PeerTls
from laban.cluster.translate_errors import STATUS_KEY
from laban.proto import laban_pb2 as pb

logger = logging.getLogger(__name__)

PASSED_ON = "laban-passed-on"
OWN_METADATA = ("user-agent", "content-type", "te", PASSED_ON)  # of each connection
PATIENCE_S = 60.0  # of a watch whose workflow is nowhere
LOOK_EVERY_S = 0.2

Unary = Callable[[Any], Awaitable[Message]]
Streaming = Callable[[Any], AsyncGenerator[Message, None]]


class Relayed(Exception):
    """What another gateway answered: to be said again as it is."""

    def __init__(self, code: grpc.StatusCode, message: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        super().__init__(message)
        self.code, self.message, self.trailing = code, message, trailing


class WorkflowMethods(Protocol):
    """`cluster.gateway_workflows.WorkflowService`."""

    async def Get(self, request: pb.GetRequest) -> pb.WorkflowRecord: ...

    def Watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]: ...


class Relay:
    """Between the gate and the service Workflows."""

    def __init__(self, board: Switchboard, shelf: Shelf, tls: PeerTls | None = None) -> None:
        """Without `tls` others are reached without it. Raises NotFound or InvalidInput for certificates."""
        self._board = board
        self._shelf = shelf
        self._channels = PeerChannels(tls, lambda: board.addresses)

    async def unary(
        self, method: MethodDescriptor, behaviour: Unary, service: WorkflowMethods, request: Any, context: Any
    ) -> Message:
        place = await self._place(method.name, request)
        if isinstance(place, There):
            return await self._ask(place, method, request, context)
        try:
            with self._showing(place):
                return await behaviour(request)
        except KeyTaken as taken:
            place = await self._board.of_workflow(taken.workflow_id, caller().tenant)
            if isinstance(place, There):
                return await self._ask(place, method, request, context)
            with self._showing(place):
                return await service.Get(pb.GetRequest(workflow_id=taken.workflow_id))

    async def stream(
        self, method: MethodDescriptor, behaviour: Streaming, service: WorkflowMethods, request: Any, context: Any
    ) -> AsyncGenerator[Message, None]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while True:
            try:
                place = await self._place(method.name, request)
                async with aclosing(self._stream_from(place, method, request, context, behaviour, service)) as items:
                    async for item in items:
                        until_s = loop.time() + PATIENCE_S
                        if method.name == "Watch":
                            request = _behind(request, item)
                        yield item
                return
            except (Unavailable, Relayed) as error:
                gone = isinstance(error, Unavailable) or error.code is grpc.StatusCode.UNAVAILABLE
                if not gone or method.name != "Watch" or _was_passed_on(context) or loop.time() >= until_s:
                    raise
            await asyncio.sleep(LOOK_EVERY_S)

    async def close(self) -> None:
        await self._channels.close()

    async def _stream_from(
        self, place: Place, method: MethodDescriptor, request: Any, context: Any, behaviour: Streaming,
        service: WorkflowMethods,
    ) -> AsyncGenerator[Message, None]:  # fmt: skip
        taken_id = ""
        if not isinstance(place, There):
            try:
                with self._showing(place):
                    async with aclosing(behaviour(request)) as items:
                        async for item in items:
                            yield item
                return
            except KeyTaken as taken:
                taken_id = taken.workflow_id
            place = await self._board.of_workflow(taken_id, caller().tenant)
        if isinstance(place, There):
            async with aclosing(self._ask_stream(place, method, request, context)) as items:
                async for item in items:
                    yield item
            return
        with self._showing(place):
            async with aclosing(service.Watch(pb.WatchRequest(workflow_id=taken_id))) as items:
                async for item in items:
                    yield item

    async def _place(self, name: str, request: Any) -> Place:
        if name == "RenewLease":
            return self._board.of_lease(request.lease_id)
        workflow_id = getattr(request, "workflow_id", "")
        if not workflow_id:
            return None
        return await self._board.of_workflow(workflow_id, caller().tenant, whole=name == "DeleteWorkflow")

    def _showing(self, place: Place) -> AbstractContextManager[None]:
        return self._shelf.showing(place.submission, place.finished) if isinstance(place, Shown) else nullcontext()

    async def _ask(self, place: There, method: MethodDescriptor, request: Any, context: Any) -> Message:
        _check_first(context)
        with self._channels.through(place.address) as channel:
            made = channel.unary_unary(_path(method), _written, _reader(method))
            try:
                answer: Message = await made(
                    request, timeout=context.time_remaining(), metadata=_carried(context.invocation_metadata())
                )
            except aio.AioRpcError as error:
                raise _relayed(error, place) from None
            return answer

    async def _ask_stream(
        self, place: There, method: MethodDescriptor, request: Any, context: Any
    ) -> AsyncGenerator[Message, None]:
        _check_first(context)
        with self._channels.through(place.address) as channel:
            made = channel.unary_stream(_path(method), _written, _reader(method))
            call = made(request, timeout=context.time_remaining(), metadata=_carried(context.invocation_metadata()))
            try:
                async for item in call:
                    yield item
            except aio.AioRpcError as error:
                raise _relayed(error, place) from None
            finally:
                call.cancel()


def _relayed(error: aio.AioRpcError, place: There) -> Exception:
    trailing = tuple((key, value) for key, value in error.trailing_metadata() or () if key == STATUS_KEY)
    if error.code() is grpc.StatusCode.UNAVAILABLE and not trailing:
        details = error.details() or ""
        # Where it is and what its certificate says is the operator's to know.
        logger.warning("the Laban at %s does not answer: %s", place.address, details)
        if any(word in details.lower() for word in ("handshake", "certificate", "verification")):
            return Unavailable("the Laban that has the workflow and this one do not trust each other's certificates")
        return Unavailable("the Laban that has the workflow does not answer: try again")
    return Relayed(error.code(), error.details() or "", trailing)


def _carried(metadata: Iterable[tuple[str, Any]] | None) -> tuple[tuple[str, Any], ...]:
    """What the caller said of itself, and that the call has been passed on."""
    given = ((key, value) for key, value in metadata or () if not key.startswith("grpc-") and key not in OWN_METADATA)
    return (*given, (PASSED_ON, "1"))


def _check_first(context: Any) -> None:
    if _was_passed_on(context):
        raise Unavailable("the workflow has just gone to another Laban: try again")


def _was_passed_on(context: Any) -> bool:
    return any(key == PASSED_ON for key, _ in context.invocation_metadata() or ())


def _behind(request: pb.WatchRequest, item: Any) -> pb.WatchRequest:
    """The request for what follows an item."""
    if item.WhichOneof("item") != "event":
        return request
    return pb.WatchRequest(workflow_id=request.workflow_id, after_event=item.event.number)


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _written(request: Message) -> bytes:
    return request.SerializeToString()


def _reader(method: MethodDescriptor) -> Callable[[bytes], Message]:
    made: Callable[[bytes], Message] = GetMessageClass(method.output_type).FromString
    return made
