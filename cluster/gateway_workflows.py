"""The service Workflows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from laban.actors.errors import InvalidInput, LabanError, NotBuilt
from laban.cluster.audit.choosing import check_steps
from laban.cluster.callers import caller
from laban.cluster.gateway_ports import AuditsPort, ExecutorPort, PagesPort, PageWish
from laban.cluster.gateway_requests import (
    Submission,
    is_quick,
    read_answer,
    read_id,
    read_lease_wish,
    read_states,
    read_submission,
)
from laban.cluster.parsed import ParsedWorkflows
from laban.cluster.records import TERMINAL_WORKFLOW, Event, WorkflowRecord
from laban.cluster.texts import aside
from laban.cluster.translate import watch_to_pb, workflow_to_pb
from laban.cluster.translate_audit import item_to_pb, read_audit
from laban.cluster.translate_cluster import explanation_to_pb
from laban.cluster.translate_findings import findings_from_pb
from laban.cluster.translate_leases import lease_to_pb
from laban.proto import laban_pb2 as pb

logger = logging.getLogger(__name__)


class WorkflowService:
    """laban.v1.Workflows over an executor."""

    def __init__(
        self, executor: ExecutorPort, audits: AuditsPort | None = None, pages: PagesPort | None = None
    ) -> None:
        """Without `audits` none can be asked for. `pages` lists more workflows than the executor has."""
        self._executor, self._audits, self._pages = executor, audits, pages
        self._cancelling: set[asyncio.Task[None]] = set()
        self._parsed = ParsedWorkflows()

    async def Submit(self, request: pb.SubmitRequest) -> pb.WorkflowRecord:
        return workflow_to_pb(await self._start(await self._read(request)))

    async def Run(self, request: pb.RunRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        if not request.HasField("submit"):
            raise InvalidInput("missing, expected what to submit", field="submit")
        submission = await self._read(request.submit, "submit.")
        starting = asyncio.ensure_future(self._start(submission))
        ended = False
        try:
            # Shielded: a client that leaves now leaves a workflow whose id we know, to go on or to be cancelled.
            record = await asyncio.shield(starting)
            async with aclosing(self._executor.watch(record.workflow_id, tenant=caller().tenant)) as items:
                async for item in items:
                    ended = isinstance(item, Event) and item.workflow_state in TERMINAL_WORKFLOW
                    yield watch_to_pb(item)
        finally:
            if request.cancel_on_disconnect and not ended:
                self._cancel_soon(starting)

    async def Watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        if request.after_event < 0:
            raise InvalidInput("expected 0 or more", field="after_event", value=request.after_event)
        watch = self._executor.watch(
            read_id(request.workflow_id, "workflow_id"), request.after_event, tenant=caller().tenant
        )
        async with aclosing(watch) as items:
            async for item in items:
                yield watch_to_pb(item)

    async def Get(self, request: pb.GetRequest) -> pb.WorkflowRecord:
        return workflow_to_pb(self._executor.get(read_id(request.workflow_id, "workflow_id"), tenant=caller().tenant))

    async def List(self, request: pb.ListRequest) -> pb.ListResponse:
        page_size, page_token, states = request.page_size, request.page_token, read_states(request.states)
        asked: PageWish = {
            "page_size": page_size,
            "page_token": page_token,
            "states": states,
            "tenant": caller().tenant,
        }
        found = self._executor.list(**asked) if self._pages is None else await self._pages(**asked)
        records, next_page_token = found
        return pb.ListResponse(
            workflows=[workflow_to_pb(record) for record in records], next_page_token=next_page_token
        )

    async def Cancel(self, request: pb.CancelRequest) -> pb.WorkflowRecord:
        workflow_id = read_id(request.workflow_id, "workflow_id")
        return workflow_to_pb(await self._executor.cancel(workflow_id, tenant=caller().tenant))

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest) -> pb.DeleteWorkflowResponse:
        await self._executor.delete(read_id(request.workflow_id, "workflow_id"), tenant=caller().tenant)
        return pb.DeleteWorkflowResponse()

    async def LeaseStep(self, request: pb.LeaseStepRequest) -> pb.LeaseStepResponse:
        wish = read_lease_wish(request)
        lease = await self._executor.lease_step(
            wish.tools,
            workflow_id=wish.workflow_id,
            handler=wish.handler,
            wait_s=wish.wait_s,
            tenant=caller().tenant,
        )
        return pb.LeaseStepResponse(lease=None if lease is None else lease_to_pb(lease))

    async def RenewLease(self, request: pb.RenewLeaseRequest) -> pb.Lease:
        return lease_to_pb(
            await self._executor.renew_lease(read_id(request.lease_id, "lease_id"), tenant=caller().tenant)
        )

    async def CompleteStep(self, request: pb.CompleteStepRequest) -> pb.WorkflowRecord:
        text, output = await aside(request.ByteSize(), partial(read_answer, request))
        record = await self._executor.complete_step(
            read_id(request.workflow_id, "workflow_id"),
            read_id(request.address, "address"),
            text,
            output=output,
            lease_id=request.lease_id,
            tenant=caller().tenant,
        )
        return workflow_to_pb(record)

    async def FailStep(self, request: pb.FailStepRequest) -> pb.WorkflowRecord:
        record = await self._executor.fail_step(
            read_id(request.workflow_id, "workflow_id"),
            read_id(request.address, "address"),
            request.message,
            lease_id=request.lease_id,
            final=request.final,
            tenant=caller().tenant,
        )
        return workflow_to_pb(record)

    async def ExplainStep(self, request: pb.ExplainStepRequest) -> pb.StepExplanation:
        workflow_id, address = read_id(request.workflow_id, "workflow_id"), read_id(request.address, "address")
        return explanation_to_pb(self._executor.explain(workflow_id, address, tenant=caller().tenant))

    async def Audit(self, request: pb.AuditRequest) -> AsyncGenerator[pb.AuditResponse, None]:
        asked = await asyncio.to_thread(read_audit, request)
        found = self._auditing.run(asked, tenant=caller().tenant, max_of_tenant=caller().max_workflows)
        async with aclosing(found) as items:
            async for item in items:
                yield item_to_pb(item)

    async def RecordFindings(self, request: pb.RecordFindingsRequest) -> pb.RecordFindingsResponse:
        if not request.HasField("submit"):
            raise InvalidInput("missing, expected the workflow", field="submit")
        submission = await asyncio.to_thread(read_submission, request.submit, "submit.")
        findings = findings_from_pb(request.findings, "findings", submission.workflow.recompute_share)
        check_steps(submission.workflow, findings, "findings")
        await self._auditing.record(submission.workflow, findings, tenant=caller().tenant)
        return pb.RecordFindingsResponse()

    async def ClearFindings(self, request: pb.ClearFindingsRequest) -> pb.ClearFindingsResponse:
        await self._auditing.clear(read_id(request.workflow, "workflow"), tenant=caller().tenant)
        return pb.ClearFindingsResponse()

    @property
    def _auditing(self) -> AuditsPort:
        if self._audits is None:
            raise NotBuilt("this server runs no audits")
        return self._audits

    async def _read(self, request: pb.SubmitRequest, path: str = "") -> Submission:
        read = partial(read_submission, request, path, tenant=caller().tenant, parsed=self._parsed)
        return read() if is_quick(request, caller().tenant, self._parsed) else await asyncio.to_thread(read)

    async def _start(self, submission: Submission) -> WorkflowRecord:
        return await self._executor.intake.submit(
            submission.workflow,
            submission.inputs,
            submission.overrides,
            idempotency_key=submission.idempotency_key,
            tenant=caller().tenant,
            max_of_tenant=caller().max_workflows,
        )

    def _cancel_soon(self, starting: asyncio.Future[WorkflowRecord]) -> None:
        """Cancel the workflow in a task of its own: the call's own is being cancelled."""

        async def cancel() -> None:
            try:
                await self._executor.cancel((await starting).workflow_id, tenant=caller().tenant)
            except LabanError as error:
                logger.info("a workflow whose client left was not cancelled: %s", error)

        task = asyncio.create_task(cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)
