"""Runs workflows: takes them in, drives them to their end, keeps what they did for those who ask.

Lives in one event loop. Knows the workers through ports: neither Ray nor protobuf appear here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from laban.actors.errors import Exhausted, FailedPrecondition, LabanError, Unavailable
from laban.actors.lasting import going_on
from laban.cluster.answers import check_output, text_of
from laban.cluster.audit.choosing import Resolved
from laban.cluster.audit.in_service import InService
from laban.cluster.audit.resolving import Levels
from laban.cluster.claims import Claims, Key, KeyTaken, digest, key_of, used_before
from laban.cluster.config_grants import GrantSection
from laban.cluster.dispatch import Dispatcher
from laban.cluster.execution import Execution
from laban.cluster.explaining import explained
from laban.cluster.finished import Finished
from laban.cluster.grants import NO_GRANTS, NOTHING_GRANTED, Grants
from laban.cluster.handover import Valve, run_out
from laban.cluster.journal import Journal
from laban.cluster.journal_records import (
    Archive,
    Stored,
    Submission,
    archive_from_json,
    notes_of,
    origin_of,
    read_document,
    write_document,
)
from laban.cluster.lease_desk import LeaseDesk, ended
from laban.cluster.lookout import Lookout, Prepared, Watching
from laban.cluster.messages import FramingPort, Language, MessageBook, TokenizerPort, Voice
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
from laban.cluster.shelf import Shelf, clock_place
from laban.cluster.status import cluster_status
from laban.cluster.texts import MAX_ERROR, check_text
from laban.cluster.traces import NO_TRACES, Traces
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.models import unknown_adapters, unknown_models
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import EncodingId, part_of

logger = logging.getLogger(__name__)

NO_VOICES: Mapping[str, Voice] = MappingProxyType({})


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
        self._voices = {dispatcher.info.model_name: Voice(framing, tokenizer), **voices}
        self.grants = Grants(grants, self._voices, dispatcher.pools)
        self._limits = limits or ExecutorLimits()
        self._clock = clock
        self._started_at = clock()
        self._lookout = lookout
        self._journal = journal
        self._traces, self._meter = traces, meter
        self._levels, self._audits = levels, audits
        self.likelihoods = Likelihoods() if lookout is None else lookout.likelihoods
        self.shelf = Shelf()
        self._valve = Valve(dispatcher)
        self._last_number = 0
        self._admitting: Counter[str] = Counter()  # by tenant
        self._claims = Claims()
        self._encodings: dict[str, frozenset[EncodingId]] = {}  # that those that have ended here named
        self.life = 0  # how often all was let go of
        self.unreadable: dict[str, str] = {}  # workflows that this version cannot go on with, and why

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

    def language(self, tenant: str, model: str = "", *, part: str = "") -> Language:
        """What turns this tenant's text into calls of a model, "" being the default. Encodings never cross tenants, but
        for those granted, nor into or out of what is set apart as a `part`.

        Raises InvalidInput for a model that is not served.
        """
        info = self._dispatcher.pools.named(model).info
        voice = self._voices[info.model_name]
        namespace = f"{info.namespace}/{tenant}"
        if part:
            namespace = part_of(namespace, part)
        granted = NOTHING_GRANTED if part else self.grants.of(tenant, info.model_name)
        return Language(
            voice.framing, voice.tokenizer, namespace, info.max_context, info.model_name, voice.adapters, granted
        )

    def namespace(self, tenant: str) -> str:
        """Of a tenant's workflows in the journal: which models they may call, and whose they are."""
        return f"{self._dispatcher.pools.identity}/{tenant}"

    def new_book(self, tenant: str, part: str = "") -> MessageBook:
        """For a workflow, which may call any of the models. `part` as in `language`."""
        others = partial(self.language, tenant, part=part) if self._dispatcher.pools.are_several else None
        return MessageBook(self.language(tenant, part=part), languages=others)

    async def submit(
        self,
        workflow: Workflow,
        inputs: Mapping[str, object],
        overrides: Overrides | None = None,
        *,
        idempotency_key: str | None = None,
        tenant: str = "",
        max_of_tenant: int | None = None,
    ) -> WorkflowRecord:
        """Start a workflow, or return the one that the same key and content started before. What else there is to do
        with one takes a `tenant` too, to whom others' workflows are not there; None may see all.

        Raises WorkflowErrors for bad inputs and models that are not served, Conflict for a key that was used with other
        content, Exhausted for too many active workflows, of all or of the tenant, InvalidInput and OutOfRange for a
        message that cannot be framed or is longer than the context, and InvalidInput for what the journal cannot hold,
        Unavailable while nothing can be written to it, KeyTaken for a key whose workflow, of the same content, is in
        the journal but not here.
        """
        overrides = overrides or Overrides()
        self.check_models(workflow)
        origin = self._traces.here()
        key = key_of(tenant, idempotency_key)
        content = "" if key is None else digest(workflow, inputs, overrides)
        known = await self._claimed_before(key, content)
        if known is not None:
            return known.board.record()
        self._check_journal()
        active = self.shelf.num_active + self._admitting.total()
        if active >= self._limits.max_active:
            raise Exhausted(f"{active} workflows are active, expected at most {self._limits.max_active}")
        if max_of_tenant is not None:
            active = self.shelf.num_active_of(tenant) + self._admitting[tenant]
            if active >= max_of_tenant:
                self._meter.refused("max_workflows")
                raise Exhausted(f"{active} workflows of this tenant are active, expected at most {max_of_tenant}")
        self._admitting[tenant] += 1
        try:
            what = Resolved(workflow, overrides)
            if self._levels is not None:
                what = await self._levels.resolve(workflow, overrides, tenant)

            def prepare() -> tuple[Prepared, str]:
                prepared = self._prepare(what.workflow, inputs, what.overrides, tenant)
                given = what.workflow, inputs, what.overrides, origin, what.notes
                return prepared, "" if self._journal is None else write_document(*given)

            # Rendering and tokenizing may take long: the loop goes on meanwhile.
            prepared, document = await asyncio.to_thread(prepare)
            known = await self._claimed_before(key, content)  # the same key may have come twice at once
            if known is not None:
                return known.board.record()
            submission = Submission(
                workflow_id=f"wf-{secrets.token_hex(8)}",
                rank=self.next_rank(),
                tenant=tenant,
                idempotency_key=idempotency_key or None,
                content=content,
                namespace=self.namespace(tenant),
                max_context=prepared.book.language.max_context,
                seed=_seed_of(prepared.run),
                created_at=self._clock(),
                document=document,
            )
            execution = self._execution_of(submission, prepared, what.notes)
            await self._accept(submission, execution, prepared, origin)
        except KeyTaken as taken:
            if taken.content == content:
                raise
            raise used_before(idempotency_key) from None
        finally:
            self._admitting[tenant] -= 1
        return execution.board.record()

    def check_models(self, workflow: Workflow) -> None:
        """Raises WorkflowErrors for models that are not served, and adapters that are not, or are of another model."""
        problems = unknown_models(workflow, self._dispatcher.pools.all)
        problems = problems or unknown_adapters(workflow, lambda model: self.language("", model).adapters)
        if problems:
            raise WorkflowErrors(workflow.marks.locate(problems))

    async def _accept(self, submission: Submission, execution: Execution, prepared: Prepared, origin: str) -> None:
        """Start it, once it is in the journal. Raises Unavailable."""

        def enter() -> None:
            self._claim(submission)
            self.shelf.keep(submission, execution)
            self._traces.follow(execution.board, origin)
            if self._lookout is None:
                execution.begin()
            else:
                self._lookout.enter(execution, prepared, submission.rank, execution.begin)
            if accepted is not None:
                accepted.set_result(None)

        def forget() -> None:
            self._claims.drop(submission.workflow_id)
            if accepted is not None:
                accepted.set_result(None)

        accepted: asyncio.Future[None] | None = None
        if self._journal is None:
            enter()
            return
        accepted = asyncio.get_running_loop().create_future()
        self._claim(submission, accepted)
        await self._journal.accept(submission, enter, forget)

    async def restore(self, stored: Iterable[Stored]) -> None:
        """Go on with what the journal has, after `start`. Those of another model wait there for it."""
        num_foreign, life = 0, self.life
        ended: list[Finished] = []
        for each in stored:
            submission = each.submission
            self._last_number = max(self._last_number, submission.rank)
            self._claim(submission)
            if each.archive:
                try:
                    finished = Finished(archive_from_json(each.archive))
                except Exception as error:  # one row's oddity is none of the others'
                    _log_odd("workflow %s cannot be shown: %s", submission, error)
                    continue
                self.shelf.keep(submission, finished)
                ended.append(finished)
            elif submission.namespace != self.namespace(submission.tenant):
                num_foreign += 1
            else:
                await self._restore(each, life)
        if num_foreign:
            logger.warning("%d unfinished workflows of other models wait in the journal", num_foreign)
        self.shelf.ended_before(ended)
        self.sweep()

    async def _restore(self, stored: Stored, life: int) -> None:
        submission = stored.submission
        try:
            asked = await asyncio.to_thread(read_document, submission.document)
            self.check_models(asked[0])
            prepared = await asyncio.to_thread(self._prepare, *asked, submission.tenant, submission.max_context)
            notes = notes_of(submission.document)
        except Exception as error:  # by a version that understands it, it may
            _log_odd("workflow %s cannot be restored: %s", submission, error)
            self.unreadable[submission.workflow_id] = str(error) or repr(error)
            return
        if life != self.life:  # others have it by now
            return
        execution = self._execution_of(submission, prepared, notes)
        problem: FailedPrecondition | None = None
        try:
            await execution.replay(stored.lines)
        except Exception as error:
            logger.exception("workflow %s cannot be restored", submission.workflow_id)
            problem = FailedPrecondition(f"cannot be restored: {error}")
        if life != self.life:
            return
        self.shelf.keep(submission, execution)
        if problem is not None:
            execution.abandon(problem)
            self.shelf.end(submission.workflow_id)
            return
        if execution.board.state in TERMINAL_WORKFLOW:
            self._retire(execution)
            return
        with going_on(f"tracing workflow {submission.workflow_id}"):
            self._traces.follow(execution.board, origin_of(submission.document), restored=True)
        go_on = execution.resume if execution.has_begun else execution.start
        if self._lookout is None:
            go_on()
        else:
            self._lookout.enter(execution, prepared, submission.rank, go_on, go_on)

    def let_go(self, why: LabanError) -> None:
        """Others have all that was here: nothing of it is shown, run or written any more."""
        self.life += 1
        self.unreadable.clear()
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
            self._check_journal()
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
            self._dispatcher.forget(self._encodings.get(workflow_id, frozenset()) - self.grants.ids)
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
        self._check_journal()
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
            self._check_journal()
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
            self._check_journal()
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

    def next_rank(self) -> int:
        """The place in the order of submission of what comes next: when memory is short, who came first goes first."""
        self._last_number = clock_place(self._clock, self._last_number)
        return self._last_number

    def _prepare(
        self,
        workflow: Workflow,
        inputs: Mapping[str, object],
        overrides: Overrides,
        tenant: str,
        max_context: int | None = None,
    ) -> Prepared:
        """`max_context` is the one that the workflow was accepted with, where that was before."""
        run = Run(workflow, inputs, overrides)
        book = self.new_book(tenant)
        if max_context is not None:
            book.language = replace(book.language, max_context=max_context)
        book.add_fixed(run.messages.values())
        for node in run.graph.nodes.values():
            if node.kind == "generate" and self._dispatcher.pools.are_several:
                book.of(node.model).read([key for source in node.sources if source.fixed for key in source.keys])
        return Prepared(run, book) if self._lookout is None else self._lookout.prepare(run, book)

    def _desk(self, tenant: str) -> LeaseDesk:
        desk = self._desks.get(tenant)
        if desk is None:
            desk = self._desks[tenant] = LeaseDesk(time_of_day=self._clock, origin=self._origin)
        return desk

    def _execution_of(self, submission: Submission, prepared: Prepared, notes: tuple[FidelityNote, ...]) -> Execution:
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
            on_end=self._retire,
            **watching,
        )

    def _check_journal(self) -> None:
        if self._valve.is_closed:
            raise Unavailable("the server is stopping")
        if self._journal is not None:
            self._journal.check()

    def _origin(self) -> str:
        return "" if self._journal is None else self._journal.member_id

    # Idempotency keys

    def _claim(self, submission: Submission, accepted: asyncio.Future[None] | None = None) -> None:
        given = submission.idempotency_key
        key = None if given is None else (submission.tenant, given)
        self._claims.put(key, submission.workflow_id, submission.content, accepted)

    async def _claimed_before(self, key: Key | None, content: str) -> Execution | Finished | None:
        workflow_id = await self._claims.find(key, content)
        if workflow_id is None or key is None:
            return None
        known = self.shelf.known(workflow_id)
        if known is None:
            raise FailedPrecondition(
                "is of a workflow that this server cannot go on with", field="idempotency_key", value=key[1]
            )
        return known

    def _retire(self, execution: Execution) -> None:
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
        self._claims.drop(workflow_id)


def _log_odd(message: str, submission: Submission, error: Exception) -> None:
    """With a traceback for what nobody foresaw."""
    is_foreseen = isinstance(error, LabanError | ValueError)
    logger.error(message, submission.workflow_id, error, exc_info=None if is_foreseen else error)


def _seed_of(run: Run) -> int:
    """The workflow's seed; without one, any: equal greedy runs agree all the same."""
    return secrets.randbits(63) if run.seed is None else run.seed
