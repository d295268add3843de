"""The client, and the asynchronous one beside it. Needs grpcio and protobuf alone: no model, no Ray, no server code."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self, Unpack

from laban.cluster import client_requests as requests
from laban.cluster.client_async import DEFAULT_TIMEOUT_S, AsyncClient
from laban.cluster.client_async_session import AsyncSession
from laban.cluster.client_channel import SyncChannel
from laban.cluster.client_requests import SubmitOptions, WorkflowSource
from laban.cluster.client_session import Session
from laban.cluster.records import ClusterStatus, Event, TokenChunk, WorkflowRecord
from laban.cluster.translate import watch_from_pb, workflow_from_pb
from laban.cluster.translate_sessions import session_from_pb, status_from_pb
from laban.proto import laban_pb2 as pb

__all__ = ["AsyncClient", "AsyncSession", "Client", "Session"]


class Client:
    """`with Client("localhost:8470") as client: record = client.submit(...)`.

    Every method raises the LabanError that the server answered with; Unavailable if it cannot be reached. Calls
    that do not stream have `timeout_s`, after which they raise a LabanError of status DEADLINE_EXCEEDED.
    """

    def __init__(self, address: str, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        self._channel = SyncChannel(address, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def submit(
        self, workflow: WorkflowSource, inputs: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> WorkflowRecord:
        """Start a workflow."""
        request = requests.submit_request(workflow, inputs, **options)
        return workflow_from_pb(self._channel.call(self._channel.workflows.Submit, request))

    def run(
        self,
        workflow: WorkflowSource,
        inputs: Mapping[str, Any] | None = None,
        *,
        cancel_on_disconnect: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> Generator[Event | TokenChunk, None, None]:
        """Start a workflow and watch it to its end. Leaving early lets it go on, unless `cancel_on_disconnect`."""
        submit = requests.submit_request(workflow, inputs, **options)
        request = pb.RunRequest(submit=submit, cancel_on_disconnect=cancel_on_disconnect)
        return self._watched(self._channel.workflows.Run(request))

    def watch(self, workflow_id: str, after_event: int = 0) -> Generator[Event | TokenChunk, None, None]:
        """Events after number `after_event`, then live ones and token chunks, to the workflow's end."""
        request = requests.filled(pb.WatchRequest, workflow_id=workflow_id, after_event=after_event)
        return self._watched(self._channel.workflows.Watch(request))

    def wait(self, workflow_id: str) -> WorkflowRecord:
        """The workflow's record once it has ended."""
        with closing(self.watch(workflow_id)) as items:
            for _ in items:
                continue
        return self.get(workflow_id)

    def get(self, workflow_id: str) -> WorkflowRecord:
        request = requests.filled(pb.GetRequest, workflow_id=workflow_id)
        return workflow_from_pb(self._channel.call(self._channel.workflows.Get, request))

    def list(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = ()
    ) -> tuple[list[WorkflowRecord], str]:
        """A page of workflows, newest first and without steps, and the token of the next page, "" after the last."""
        request = requests.list_request(page_size, page_token, states)
        page = self._channel.call(self._channel.workflows.List, request)
        return [workflow_from_pb(record) for record in page.workflows], page.next_page_token

    def cancel(self, workflow_id: str) -> WorkflowRecord:
        """Stop a workflow; one that has ended is returned as it is."""
        request = requests.filled(pb.CancelRequest, workflow_id=workflow_id)
        return workflow_from_pb(self._channel.call(self._channel.workflows.Cancel, request))

    def complete_step(self, workflow_id: str, address: str, text: str) -> WorkflowRecord:
        """Give the text of an external step. The same text again is no error."""
        request = requests.complete_request(workflow_id, address, text)
        return workflow_from_pb(self._channel.call(self._channel.workflows.CompleteStep, request))

    def fail_step(self, workflow_id: str, address: str, message: str) -> WorkflowRecord:
        """Say that an external step failed."""
        request = requests.fail_request(workflow_id, address, message)
        return workflow_from_pb(self._channel.call(self._channel.workflows.FailStep, request))

    def open_session(self, ttl_s: float | None = None) -> Session:
        """A session that ends when it has not been used for `ttl_s` seconds; None: the server's default."""
        request = requests.open_request(ttl_s)
        session = self._channel.call(self._channel.choreography.OpenSession, request)
        return Session(self._channel, session_from_pb(session))

    def status(self) -> ClusterStatus:
        return status_from_pb(self._channel.call(self._channel.cluster.GetStatus, pb.GetStatusRequest()))

    def _watched(self, call: Any) -> Generator[Event | TokenChunk, None, None]:
        with closing(self._channel.items(call)) as responses:
            for response in responses:
                item = watch_from_pb(response)
                if item is not None:
                    yield item
