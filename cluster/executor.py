"""Runs workflows: drives them to their end, keeps what they did for those who ask. How they come in is `intake`.

Lives in one event loop. Knows the workers through ports: neither Ray nor protobuf appear here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from laban.actors.errors import LabanError, Unavailable
from laban.actors.lasting import going_on
from laban.cluster.answers import check_output, text_of
from laban.cluster.audit.in_service import InService
from laban.cluster.audit.resolving import Levels
from laban.cluster.config_grants import GrantSection
from laban.cluster.dispatch import Dispatcher
from laban.cluster.execution import Execution
from laban.cluster.explaining import explained
from laban.cluster.grants import NO_GRANTS
from laban.cluster.handover import Valve, run_out
from laban.cluster.intake import Intake
from laban.cluster.journal import Journal
from laban.cluster.journal_records import Archive, Submission
from laban.cluster.languages import NO_VOICES, Languages
from laban.cluster.lease_desk import LeaseDesk, ended
from laban.cluster.lookout import Lookout, Prepared, Watching
from laban.cluster.messages import FramingPort, TokenizerPort, Voice
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.moves import Stopped
from laban.cluster.records import (
    TERMINAL_WORKFLOW,
    ClusterStatus,
    Event,
    FidelityNote,
    Lease,
    StepExplanation,
    TokenChunk,
    WorkflowRecord,
)
from laban.cluster.shelf import Shelf
from laban.cluster.status import cluster_status
from laban.cluster.texts import MAX_ERROR, check_text
from laban.cluster.traces import NO_TRACES, Traces
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.kvstore.encodings import EncodingId

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExecutorLimits:
    max_active: int = 256  # workflows running at once; more are refused
    max_finished: int = 1000  # kept for Get, List and Watch; the oldest is forgotten first
    max_age_s: float | None = None  # after their end; None: as long as there is room


class Executor:
    """Methods are called in the event loop that the dispatcher lives in."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        framing: FramingPort,
        tokenizer: TokenizerPort,
        *,
        limits: ExecutorLimits | None = None,
        lookout: Lookout | None = None,
        journal: Journal | None = None,
        traces: Traces = NO_TRACES,
        meter: Meter = NO_METER,
        levels: Levels | None = None,
        audits: InService | None = None,
        voices: Mapping[str, Voice] = NO_VOICES,
        grants: Mapping[str, GrantSection] = NO_GRANTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a `lookout` workers are told nothing of what is to come, and no workflow is ever held back. Without a
        `journal` workflows end with the process; one that is given has been opened, and is closed with the executor.
        Without `levels` nothing is known of any, and `auto` is exact; without `audits` no call is run again. `framing`
        and `tokenizer` are the default model's, `voices` those of others by their names. `grants` have their files
        read; raises what Grants raises."""
        self._dispatcher = dispatcher
        self._desks: dict[str, LeaseDesk] = {}  # by tenant: nobody is handed another's step
        voice = Voice(framing, tokenizer)
        self.languages = Languages(dispatcher.pools, {dispatcher.info.model_name: voice, **voices}, grants)
        self._limits = limits or ExecutorLimits()
        self._clock = clock
        self._started_at = clock()
        self._lookout, self._journal, self._audits = lookout, journal, audits
        self.likelihoods = Likelihoods() if lookout is None else lookout.likelihoods
        self.shelf = Shelf()
        self._valve = Valve(dispatcher)
        self._encodings: dict[str, frozenset[EncodingId]] = {}  # that those that have ended here named
        self.intake = Intake(
            self,
            self.shelf,
            self.languages,
            max_active=self._limits.max_active,
            lookout=lookout,
            journal=journal,
            traces=traces,
            meter=meter,
            levels=levels,
            clock=clock,
        )

    def start(self) -> None:
        """Start the dispatcher, and looking ahead."""
        self._dispatcher.start()
        if self._lookout is not None:
            self._lookout.start()
        if self._journal is not None:
            self._journal.start()

    async def drain(self, timeout_s: float) -> None:
        """Before `refuse`, where workflows are to go on in another process: admit nothing, begin no call, and let those
        that run end, for so long at most."""
        if self._journal is not None:
            await run_out(self._valve, self.shelf.active, timeout_s)

    def refuse(self) -> None:
        """Before `stop`, where workflows are to go on in another process: change nothing more about them."""
        if self._journal is not None:
            self._journal.refuse()

    async def stop(self) -> None:
        """Cancel what runs, so that every watch ends, and close the workers. What is in a journal is not cancelled: it
        goes on when it is restored."""
        for execution in self.shelf:
            if self._journal is None:
                execution.cancel()
            else:
                execution.leave(Unavailable("the server is stopping"))
        for desk in self._desks.values():
            desk.close()
        if self._lookout is not None:
            await self._lookout.stop()
        await self._dispatcher.stop()
        if self._journal is not None:
            await self._journal.close()

    def let_go(self, why: LabanError) -> None:
        """Others have all that was here: nothing of it is shown, run or written any more."""
        self.intake.let_go()
        for execution in self.shelf:
            execution.leave(why)
            if isinstance(execution, Execution):
                self._dispatcher.directory.unwatch(execution.workflow_id)
                if self._lookout is not None:
                    self._lookout.let_go(execution.workflow_id)
            self._forget(execution.workflow_id)

    def forget(self, workflow_ids: Iterable[str]) -> None:
        """These have been deleted by others."""
        for workflow_id in workflow_ids:
            if workflow_id in self.shelf.ended:
                self._forget(workflow_id)

    def sweep(self) -> None:
        """Forget those that ended too long ago, or are too many."""
        while (oldest := self.shelf.overdue(self._limits.max_finished, self.forgets_before)) is not None:
            self._forget(oldest)
            if self._journal is not None:
                self._journal.forget(oldest)

    @property
    def forgets_before(self) -> float | None:
        """The time of day before which workflows that ended are forgotten."""
        return None if self._limits.max_age_s is None else self._clock() - self._limits.max_age_s

    async def watch(
        self, workflow_id: str, after_event: int = 0, *, tenant: str | None = None
    ) -> AsyncGenerator[Event | TokenChunk, None]:
        """Events after number `after_event`, then live ones and token chunks, to the workflow's end.

        A watch that begins while steps run gets their text so far, one chunk for each. One that is slow gets
        fewer and larger chunks, and every event. Raises NotFound, InvalidInput, Exhausted.
        """
        feed = self.shelf.find(workflow_id, tenant).board.feed.watch(after_event)
        try:
            async for item in feed:
                yield item
        finally:
            await feed.aclose()

    def get(self, workflow_id: str, *, tenant: str | None = None) -> WorkflowRecord:
        return self.shelf.find(workflow_id, tenant).board.record()

    def list(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = (), tenant: str | None = None
    ) -> tuple[list[WorkflowRecord], str]:
        """A page of workflows, newest first and without their steps, and the token of the next page or ""."""
        return self.shelf.page(page_size, page_token, states, tenant)

    async def cancel(self, workflow_id: str, *, tenant: str | None = None) -> WorkflowRecord:
        """Stop a workflow; one that has ended stays as it is."""
        execution = self.shelf.find(workflow_id, tenant)
        if execution.board.state not in TERMINAL_WORKFLOW:
            self.check_open()
            await execution.inbox.deliver(Stopped())
        return execution.board.record()

    async def delete(self, workflow_id: str, *, tenant: str | None = None) -> None:
        """Stop a workflow, and forget it and its idempotency key, in the journal too, and have workers remove the
        encodings that only it named, but for granted ones: they hold nothing of its own."""
        await self.cancel(workflow_id, tenant=tenant)
        if self._journal is not None:
            await self._journal.delete(workflow_id)
        if self._audits is not None:
            self._audits.forget(workflow_id)
        if workflow_id in self.shelf:  # nobody else has deleted it meanwhile
            self._dispatcher.forget(self._encodings.get(workflow_id, frozenset()) - self.languages.grants.ids)
            self._forget(workflow_id)

    async def lease_step(
        self,
        tools: Collection[str],
        *,
        workflow_id: str = "",
        handler: str = "",
        wait_s: float = 20.0,
        tenant: str = "",
    ) -> Lease | None:
        """An external step of these tools, of the tenant's workflows, for as long as the lease runs; None if none came
        in time.

        Raises NotFound, and FailedPrecondition if the workflow, where one is named, has ended or ends meanwhile.
        """
        if workflow_id and self.shelf.find(workflow_id, tenant).board.state in TERMINAL_WORKFLOW:
            raise ended(workflow_id)
        self.check_open()
        desk = self._desk(tenant)
        lease = await desk.lease(tools, workflow_id, handler, wait_s)
        if lease is not None:
            await self.shelf.find(lease.workflow_id).inbox.settled()
        return lease if lease is None or desk.leases.find(lease.lease_id) is not None else None

    async def renew_lease(self, lease_id: str, *, tenant: str = "") -> Lease:
        """The lease without its messages, to run for its full time again. Raises FailedPrecondition if it has ended."""
        return self._desk(tenant).renew(lease_id)

    async def complete_step(
        self,
        workflow_id: str,
        address: str,
        text: str | None = None,
        *,
        output: object = None,
        lease_id: str = "",
        tenant: str | None = None,
    ) -> WorkflowRecord:
        """Answer an external step by its text, or by any JSON value. Idempotent: the same answer again changes nothing.

        Raises NotFound, FailedPrecondition for a step that does not wait and a lease that has run out, Conflict for
        another answer than before, InvalidInput for one that its schema does not allow, OutOfRange for a text longer
        than the context. Under a lease the record has no steps: of a large fan-out each answer would bring them all.
        """
        execution = self.shelf.find(workflow_id, tenant)
        schema = execution.external.output_schema(address)
        if schema is not None:
            await asyncio.to_thread(check_output, schema, text, output)
        text = check_text(text_of(output), "output") if text is None else check_text(text, "text")
        if execution.external.completed(address, text, lease_id) is not None:
            self.check_open()
            await execution.look_over(address, text)
            move = execution.external.completed(address, text, lease_id)  # that may have taken its time
            if move is not None:
                await execution.inbox.deliver(move)
        return execution.board.record(with_steps=not lease_id)

    async def fail_step(
        self,
        workflow_id: str,
        address: str,
        message: str,
        *,
        lease_id: str = "",
        final: bool = False,
        tenant: str | None = None,
    ) -> WorkflowRecord:
        """Say that an external step failed; `final`: trying again is of no use. Raises as `complete_step` does."""
        check_text(message, "message", MAX_ERROR)
        execution = self.shelf.find(workflow_id, tenant)
        move = execution.external.failed(address, message, lease_id, final=final)
        if move is not None:
            self.check_open()
            await execution.inbox.deliver(move)
        return execution.board.record(with_steps=not lease_id)

    def explain(self, workflow_id: str, address: str, *, tenant: str | None = None) -> StepExplanation:
        """Why a step's call went where it went.

        Raises NotFound for an unknown workflow or step, and for a step without a decision: one without a call, not
        routed yet, or too long ago.
        """
        execution = self.shelf.find(workflow_id, tenant)
        decision = self._dispatcher.explain(f"{workflow_id}/{address}")
        uses = {} if self._lookout is None else self._lookout.foresight.uses(workflow_id)
        return explained(execution.board, address, decision, execution.next_uses(address, uses))

    def status(self, *, sessions_open: int = 0) -> ClusterStatus:
        status = cluster_status(
            self._dispatcher,
            workflows_running=self.shelf.num_active,
            sessions_open=sessions_open,
            uptime_s=self._clock() - self._started_at,
        )
        status = replace(status, journal="" if self._journal is None else self._journal.status)
        return status if self._lookout is None else replace(status, workflows_held=self._lookout.num_held)

    def _desk(self, tenant: str) -> LeaseDesk:
        desk = self._desks.get(tenant)
        if desk is None:
            desk = self._desks[tenant] = LeaseDesk(time_of_day=self._clock, origin=self._origin)
        return desk

    def execution_of(self, submission: Submission, prepared: Prepared, notes: tuple[FidelityNote, ...]) -> Execution:
        watching = Watching() if self._lookout is None else self._lookout.watching(submission.workflow_id)
        if self._audits is not None:
            watching["on_change"] = self._audits.listening(submission.tenant, watching.get("on_change"))
        return Execution(
            submission.workflow_id,
            prepared.run.graph.workflow.name,
            prepared.run,
            prepared.book,
            self._valve,
            self._desk(submission.tenant),
            seed=submission.seed,
            rank=submission.rank,
            clock=self._clock,
            created_at=submission.created_at,
            notes=notes,
            log=self._journal,
            on_end=self.retire,
            **watching,
        )

    def check_open(self) -> None:
        """Raises Unavailable where nothing new is taken in, and what the journal cannot hold."""
        if self._valve.is_closed:
            raise Unavailable("the server is stopping")
        if self._journal is not None:
            self._journal.check()

    def _origin(self) -> str:
        return "" if self._journal is None else self._journal.member_id

    def retire(self, execution: Execution) -> None:
        """Keep what has ended, up to the limit, and what there is to learn from it."""
        with going_on(f"learning from workflow {execution.workflow_id}"):
            self.likelihoods.observe(execution.board.name, execution.decisions)
        directory = self._dispatcher.directory
        self._encodings[execution.workflow_id] = directory.watching.of(execution.workflow_id)
        directory.unwatch(execution.workflow_id)
        if self._lookout is not None:
            self._lookout.leave(execution)
        self.shelf.end(execution.workflow_id)
        if self._journal is not None:
            self._journal.end(Archive.of(execution.board, execution.external.answers))
        self.sweep()

    def _forget(self, workflow_id: str) -> None:
        self.shelf.drop(workflow_id)
        self._encodings.pop(workflow_id, None)
        self.intake.claims.drop(workflow_id)
