"""The asynchronous client. Needs grpcio and protobuf alone: no model, no Ray, no server code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

from laban.cluster import client_lease_requests as leases
from laban.cluster import client_requests as requests
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.records import AuditItem, RecordedStep
from laban.cluster.client_async_session import AsyncSession
from laban.cluster.client_async_tools import AsyncToolServer
from laban.cluster.client_audit import audit_request, findings_request, item_from_pb
from laban.cluster.client_channel import AsyncChannel
from laban.cluster.client_credentials import Credentials, credentials_from
from laban.cluster.client_requests import SubmitOptions, WorkflowSource
from laban.cluster.records import (
    ClusterStatus,
    DrainProgress,
    Event,
    Lease,
    StepExplanation,
    TokenChunk,
    WorkerStatus,
    WorkflowRecord,
)
from laban.cluster.tool_calls import UNSET, Tool
from laban.cluster.translate import watch_from_pb, workflow_from_pb
from laban.cluster.translate_cluster import drain_from_pb, explanation_from_pb, status_from_pb, worker_from_pb
from laban.cluster.translate_leases import lease_from_pb
from laban.cluster.translate_sessions import session_from_pb
from laban.proto import laban_pb2 as pb

DEFAULT_TIMEOUT_S = 60.0


class AsyncClient:
    """`async with AsyncClient("localhost:8470") as client: record = await client.submit(...)`.

    Every method raises the LabanError that the server answered with; Unavailable if it cannot be reached. Calls
    that do not stream have `timeout_s`, after which they raise a LabanError of status DEADLINE_EXCEEDED.
    """

    def __init__(
        self, address: str, *, timeout_s: float | None = DEFAULT_TIMEOUT_S, credentials: Credentials | None = None
    ) -> None:
        """Without `credentials` they are taken from the environment: LABAN_TOKEN, LABAN_TLS, LABAN_TLS_CA,
        LABAN_TLS_CERT and LABAN_TLS_KEY, where they are set."""
        self._channel = AsyncChannel(address, timeout_s, credentials_from() if credentials is None else credentials)

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
        return self._watched(self._channel.workflows.Run(request), request)

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

    async def delete(self, workflow_id: str) -> None:
        """Stop a workflow, and have the server forget its texts, results and events, and its idempotency key."""
        request = requests.filled(pb.DeleteWorkflowRequest, workflow_id=workflow_id)
        await self._channel.call(self._channel.workflows.DeleteWorkflow, request)

    async def explain(self, workflow_id: str, address: str) -> StepExplanation:
        """Why a step's call went to the worker it went to, with every candidate's sort key.

        Raises NotFound for a step without a decision: it has no call, was not routed yet, or is too long ago.
        """
        request = requests.filled(pb.ExplainStepRequest, workflow_id=workflow_id, address=address)
        return explanation_from_pb(await self._channel.call(self._channel.workflows.ExplainStep, request))

    def audit(
        self,
        workflow: WorkflowSource,
        inputs: Mapping[str, Any] | None,
        recorded: Iterable[RecordedStep],
        levels: Iterable[str],
        *,
        num_apart: int = 0,
        **options: Unpack[SubmitOptions],
    ) -> AsyncGenerator[AuditItem, None]:
        """Replays a run, recorded under `exact`, under other levels: what each changes and saves, as it is found.
        Leaving early ends the audit."""
        submit = requests.submit_request(workflow, inputs, **options)
        request = audit_request(submit, recorded, levels, num_apart)
        return self._audited(self._channel.workflows.Audit(request), request)

    async def record_findings(
        self, workflow: WorkflowSource, findings: Iterable[Finding], **options: Unpack[SubmitOptions]
    ) -> None:
        """Have the server keep what audits found of a workflow, for `auto` to choose by."""
        request = findings_request(requests.submit_request(workflow, **options), findings)
        await self._channel.call(self._channel.workflows.RecordFindings, request)

    async def clear_findings(self, workflow: str) -> None:
        """Have the server forget what audits found of the workflows of a name. Raises NotFound if that is nothing."""
        request = requests.filled(pb.ClearFindingsRequest, workflow=workflow)
        await self._channel.call(self._channel.workflows.ClearFindings, request)

    async def lease_step(
        self, tools: Iterable[str], *, workflow_id: str = "", handler: str = "", wait_s: float = 20.0
    ) -> Lease | None:
        """An external step of these tools, to be completed or failed before the lease runs out; None: none came.

        `handler` is who asks, as results name it.
        """
        request = leases.lease_request(tools, workflow_id, handler, wait_s)
        timeout_s = None if self._channel.timeout_s is None else self._channel.timeout_s + wait_s
        response = await self._channel.call_within(self._channel.workflows.LeaseStep, request, timeout_s)
        return lease_from_pb(response.lease) if response.HasField("lease") else None

    async def renew_lease(self, lease_id: str) -> Lease:
        """The lease, without its messages, runs for its full time again. Raises FailedPrecondition if it has ended."""
        request = requests.filled(pb.RenewLeaseRequest, lease_id=lease_id)
        return lease_from_pb(await self._channel.call(self._channel.workflows.RenewLease, request))

    async def complete_step(
        self,
        workflow_id: str,
        address: str,
        text: str | None = None,
        *,
        output: object = UNSET,
        lease_id: str = "",
    ) -> WorkflowRecord:
        """Give the text of an external step, or its output: any JSON value. The same answer again is no error."""
        request = leases.complete_request(workflow_id, address, text, output, lease_id)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.CompleteStep, request))

    async def fail_step(
        self, workflow_id: str, address: str, message: str, *, lease_id: str = "", final: bool = False
    ) -> WorkflowRecord:
        """Say that an external step failed. It is tried again if its `retries` allow, unless `final`."""
        request = leases.fail_request(workflow_id, address, message, lease_id, final)
        return workflow_from_pb(await self._channel.call(self._channel.workflows.FailStep, request))

    async def serve_tools(
        self,
        tools: Mapping[str, Tool],
        *,
        workflow_id: str = "",
        handler: str = "",
        concurrency: int = 4,
        grace_s: float = 10.0,
    ) -> None:
        """Do the external steps of these tools, `{"add": add}`, until cancelled.

        With `workflow_id` that workflow's alone, until it ends. A tool gets the step's args by name and returns the
        text or any JSON value; what it raises fails the step. Coroutine functions are awaited, and cancelled if the
        lease is lost; plain functions run in threads. Leases are renewed meanwhile. A server that is away is waited
        for. On leaving, steps in hand have `grace_s` to end; the leases of the others run out.
        """
        await AsyncToolServer(
            self, tools, workflow_id=workflow_id, handler=handler, concurrency=concurrency, grace_s=grace_s
        ).serve()

    async def open_session(self, ttl_s: float | None = None, *, model: str = "", adapter: str = "") -> AsyncSession:
        """A session that ends when it has not been used for `ttl_s` seconds; None: the server's default. `model` is the
        name of the one that it calls; "": the server's default. `adapter` is that of the
        model's; "": none. Raises InvalidInput for one that is not served."""
        request = requests.open_request(ttl_s, model, adapter)
        session = await self._channel.call(self._channel.choreography.OpenSession, request)
        return AsyncSession(self._channel, session_from_pb(session))

    async def status(self) -> ClusterStatus:
        return status_from_pb(await self._channel.call(self._channel.cluster.GetStatus, pb.GetStatusRequest()))

    async def add_worker(self, *, model: str = "", timeout_s: float | None = None) -> WorkerStatus:
        """Start one more worker of a model, "" being the default, and wait until it is up: minutes, for a large one.
        Raises Exhausted for no room."""
        request = pb.AddWorkerRequest(model=model)
        return worker_from_pb(await self._channel.call_within(self._channel.cluster.AddWorker, request, timeout_s))

    def drain_worker(self, worker_id: str) -> AsyncGenerator[DrainProgress, None]:
        """Take a worker out: how far that is, now and then, until it is gone. Leaving early lets it go on.

        Raises NotFound for a worker there is not, FailedPrecondition for the last one.
        """
        request = requests.filled(pb.DrainWorkerRequest, worker_id=worker_id)
        return self._drained(self._channel.cluster.DrainWorker(request))

    async def _drained(self, call: Any) -> AsyncGenerator[DrainProgress, None]:
        async with aclosing(self._channel.items(call)) as responses:
            async for response in responses:
                yield drain_from_pb(response)

    async def _audited(self, call: Any, request: Any) -> AsyncGenerator[AuditItem, None]:
        async with aclosing(self._channel.items(call, request)) as responses:
            async for response in responses:
                yield item_from_pb(response)

    async def _watched(self, call: Any, request: Any = None) -> AsyncGenerator[Event | TokenChunk, None]:
        async with aclosing(self._channel.items(call, request)) as responses:
            async for response in responses:
                item = watch_from_pb(response)
                if item is not None:
                    yield item
