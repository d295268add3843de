"""The client's handler loop: external steps are leased, done by tools in threads, and answered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from laban.actors.errors import FailedPrecondition, LabanError
from laban.cluster.client_channel import SyncChannel
from laban.cluster.client_lease_requests import lease_request
from laban.cluster.records import Lease, WorkflowRecord
from laban.cluster.tool_calls import (
    PASSING,
    POLL_S,
    RENEWALS,
    Outcome,
    Tool,
    arguments_of,
    check_tools,
    default_handler,
    failure_of,
    outcome_of,
    pauses,
    refused,
    takes,
)
from laban.cluster.translate_leases import lease_from_pb

logger = logging.getLogger(__name__)

TICK_S = 0.1
MAX_REFUSALS = 3  # of an answer, for want of resources, before the step fails of it
KILLING_S = 5.0  # for tools that heed `lost`


class StepClient(Protocol):
    """What the loop needs of a `Client`."""

    def renew_lease(self, lease_id: str) -> Lease: ...

    def complete_step(
        self, workflow_id: str, address: str, text: str | None = None, *, output: object = ..., lease_id: str = ""
    ) -> WorkflowRecord: ...

    def fail_step(
        self, workflow_id: str, address: str, message: str, *, lease_id: str = "", final: bool = False
    ) -> WorkflowRecord: ...


class _Work:
    """A leased step, and the thread that is at it."""

    def __init__(self, lease: Lease, tool: Tool) -> None:
        self.lease = lease
        self.tool = tool
        self.lost = threading.Event()  # nobody wants the outcome any more
        self.ended = threading.Event()


class ToolServer:
    """One poll at a time asks for steps, as long as fewer than `concurrency` are in hand."""

    def __init__(
        self,
        client: StepClient,
        channel: SyncChannel,
        tools: Mapping[str, Tool],
        *,
        workflow_id: str,
        handler: str,
        concurrency: int,
        stop: threading.Event | None,
        grace_s: float,
    ) -> None:
        check_tools(tools, concurrency)
        self._client = client
        self._channel = channel
        self._tools = dict(tools)
        self._workflow_id = workflow_id
        self._request = lease_request(self._tools, workflow_id, handler or default_handler(), POLL_S)
        self._stop = stop or threading.Event()
        self._grace_s = grace_s
        self._room = threading.Semaphore(concurrency)
        self._works: set[_Work] = set()

    def serve(self) -> None:
        """Until `stop`, or the end of the workflow where one is named. Raises what does not pass by waiting."""
        waits = pauses()
        try:
            while not self._stop.is_set():
                if not self._room.acquire(timeout=TICK_S):
                    continue
                lease: Lease | None = None
                try:
                    lease = self._next()
                    waits = pauses()
                except FailedPrecondition:
                    if self._workflow_id:
                        return
                    raise
                except LabanError as error:
                    if error.status not in PASSING:
                        raise
                    logger.info("no steps for now: %s", error)
                    self._stop.wait(next(waits))
                finally:
                    if lease is None:
                        self._room.release()
                if lease is not None:
                    self._start(lease)
        finally:
            self._leave()

    def _next(self) -> Lease | None:
        timeout_s = None if self._channel.timeout_s is None else self._channel.timeout_s + POLL_S
        call = self._channel.call_unless(self._stop, self._channel.workflows.LeaseStep, self._request, timeout_s)
        return lease_from_pb(call.lease) if call is not None and call.HasField("lease") else None

    def _start(self, lease: Lease) -> None:
        work = _Work(lease, self._tools[lease.tool])
        self._works.add(work)
        # Daemons: a tool that never ends does not keep the program from ending.
        threading.Thread(target=self._renew, args=(work,), name=f"renew {lease.address}", daemon=True).start()
        threading.Thread(target=self._do, args=(work,), name=f"do {lease.address}", daemon=True).start()

    def _do(self, work: _Work) -> None:
        try:
            try:
                outcome = outcome_of(work.tool(**arguments_of(work.tool, work.lease, work.lost)))
            except (Exception, SystemExit) as error:  # whatever a tool raises is its answer
                logger.info("the tool %s failed at %s: %r", work.lease.tool, work.lease.address, error)
                outcome = failure_of(error)
            self._answer(work, outcome)
        finally:
            self._works.discard(work)
            work.ended.set()
            self._room.release()

    def _answer(self, work: _Work, outcome: Outcome) -> None:
        refusals = 0
        for wait_s in pauses():
            if work.lost.is_set():
                return
            try:
                self._send(work.lease, outcome)
                return
            except LabanError as error:
                refusals += error.status == "RESOURCE_EXHAUSTED"
                if error.status in PASSING and refusals < MAX_REFUSALS:
                    work.lost.wait(wait_s)
                    continue
                instead = refused(outcome, error)
                if instead is None:
                    logger.info("the answer to %s was refused: %s", work.lease.address, error)
                    return
                outcome, refusals = instead, 0

    def _send(self, lease: Lease, outcome: Outcome) -> None:
        step = (lease.workflow_id, lease.address)
        if outcome.error is not None:
            self._client.fail_step(*step, outcome.error, lease_id=lease.lease_id, final=outcome.final)
        elif outcome.text is not None:
            self._client.complete_step(*step, outcome.text, lease_id=lease.lease_id)
        else:
            self._client.complete_step(*step, output=outcome.output, lease_id=lease.lease_id)

    def _renew(self, work: _Work) -> None:
        """Until the work has ended, or its lease is lost."""
        lease = work.lease
        renewed_at = time.monotonic()
        while not work.ended.wait(lease.duration_s / RENEWALS):
            try:
                self._client.renew_lease(lease.lease_id)
                renewed_at = time.monotonic()
            except LabanError as error:
                if error.status not in PASSING or time.monotonic() - renewed_at > lease.duration_s:
                    logger.info("the lease of %s is lost: %s", lease.address, error)
                    work.lost.set()
                    return

    def _leave(self) -> None:
        """Let what runs end in time; what does not is left, and its leases run out."""
        deadline = time.monotonic() + self._grace_s
        works = list(self._works)
        try:
            for work in works:
                work.ended.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for work in works:
                work.lost.set()
        deadline = time.monotonic() + KILLING_S
        for work in works:
            if takes(work.tool, "lost"):
                work.ended.wait(max(0.0, deadline - time.monotonic()))
