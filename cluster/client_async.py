"""The asynchronous client. Needs grpcio and protobuf alone: no model, no Ray, no server code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

from laban.cluster import client_requests as requests
from laban.cluster.client_async_session import AsyncSession
from laban.cluster.client_channel import AsyncChannel
from laban.cluster.client_requests import SubmitOptions, WorkflowSource
from laban.cluster.records import ClusterStatus, Event, TokenChunk, WorkflowRecord
from laban.cluster.translate import watch_from_pb, workflow_from_pb
from laban.cluster.translate_sessions import session_from_pb, status_from_pb
from laban.proto import laban_pb2 as pb

DEFAULT_TIMEOUT_S = 60.0


class AsyncClient:
    """`async with AsyncClient("localhost:8470") as client: record = await client.submit(...)`.

    Every method raises the LabanError that the server answered with; Unavailable if it cannot be reached. Calls
    that do not stream have `timeout_s`, after which they raise a LabanError of status DEADLINE_EXCEEDED.
    """

    def __init__(self, address: str, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        self._channel = AsyncChannel(address, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def submit(
        self, workflow: WorkflowSource, inputs: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> WorkflowRecord:
        """Start a workflow."""
        request = requests.submit_request(workflow, inputs, **options)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.Submit, request))

    def run(
        self,
        workflow: WorkflowSource,
        inputs: Mapping[str, Any] | None = None,
        *,
        cancel_on_disconnect: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> AsyncGenerator[Event | TokenChunk, None]:
        """Start a workflow and watch it to its end. Leaving early lets it go on, unless `cancel_on_disconnect`."""
        submit = requests.submit_request(workflow, inputs, **options)
        request = pb.RunRequest(submit=submit, cancel_on_disconnect=cancel_on_disconnect)
        return self._watched(self._channel.workflows.Run(request))

    def watch(self, workflow_id: str, after_event: int = 0) -> AsyncGenerator[Event | TokenChunk, None]:
        """Events after number `after_event`, then live ones and token chunks, to the workflow's end."""
        request = requests.filled(pb.WatchRequest, workflow_id=workflow_id, after_event=after_event)
        return self._watched(self._channel.workflows.Watch(request))

    async def wait(self, workflow_id: str) -> WorkflowRecord:
        """The workflow's record once it has ended."""
        async with aclosing(self.watch(workflow_id)) as items:
            async for _ in items:
                continue
        return await self.get(workflow_id)

    async def get(self, workflow_id: str) -> WorkflowRecord:
        request = requests.filled(pb.GetRequest, workflow_id=workflow_id)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.Get, request))

    async def list(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = ()
    ) -> tuple[list[WorkflowRecord], str]:
        """A page of workflows, newest first and without steps, and the token of the next page, "" after the last."""
        request = requests.list_request(page_size, page_token, states)
        page = await self._channel.call(self._channel.workflows.List, request)
        return [workflow_from_pb(record) for record in page.workflows], page.next_page_token

    async def cancel(self, workflow_id: str) -> WorkflowRecord:
        """Stop a workflow; one that has ended is returned as it is."""
        request = requests.filled(pb.CancelRequest, workflow_id=workflow_id)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.Cancel, request))

    async def complete_step(self, workflow_id: str, address: str, text: str) -> WorkflowRecord:
        """Give the text of an external step. The same text again is no error."""
        request = requests.complete_request(workflow_id, address, text)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.CompleteStep, request))

    async def fail_step(self, workflow_id: str, address: str, message: str) -> WorkflowRecord:
        """Say that an external step failed."""
        request = requests.fail_request(workflow_id, address, message)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.FailStep, request))

    async def open_session(self, ttl_s: float | None = None) -> AsyncSession:
        """A session that ends when it has not been used for `ttl_s` seconds; None: the server's default."""
        request = requests.open_request(ttl_s)
        session = await self._channel.call(self._channel.choreography.OpenSession, request)
        return AsyncSession(self._channel, session_from_pb(session))

    async def status(self) -> ClusterStatus:
        return status_from_pb(await self._channel.call(self._channel.cluster.GetStatus, pb.GetStatusRequest()))

    async def _watched(self, call: Any) -> AsyncGenerator[Event | TokenChunk, None]:
        async with aclosing(self._channel.items(call)) as responses:
            async for response in responses:
                item = watch_from_pb(response)
                if item is not None:
                    yield item
