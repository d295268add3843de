"""How workflows come in: those that are submitted, and those that the journal has from before.

Lives in the executor's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol

from laban.actors.errors import Exhausted, FailedPrecondition, LabanError
from laban.actors.lasting import going_on
from laban.cluster.audit.choosing import Resolved
from laban.cluster.audit.resolving import Levels
from laban.cluster.claims import Claims, Key, KeyTaken, digest, key_of, used_before
from laban.cluster.execution import Execution
from laban.cluster.finished import Finished
from laban.cluster.journal import Journal
from laban.cluster.journal_records import (
    Stored,
    Submission,
    archive_from_json,
    notes_of,
    origin_of,
    read_document,
    write_document,
)
from laban.cluster.languages import Languages
from laban.cluster.lookout import Lookout, Prepared
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.records import TERMINAL_WORKFLOW, FidelityNote, WorkflowRecord
from laban.cluster.shelf import Shelf, clock_place
from laban.cluster.traces import NO_TRACES, Traces
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides

logger = logging.getLogger(__name__)


class Home(Protocol):
    """`cluster.executor.Executor`, which has what came in."""

    def check_open(self) -> None: ...

    def execution_of(
        self, submission: Submission, prepared: Prepared, notes: tuple[FidelityNote, ...]
    ) -> Execution: ...

    def retire(self, execution: Execution) -> None: ...

    def sweep(self) -> None: ...


class Intake:
    """Each workflow gets in once: `claims` are by the keys that it was submitted under."""

    def __init__(
        self,
        home: Home,
        shelf: Shelf,
        languages: Languages,
        *,
        max_active: int,
        lookout: Lookout | None = None,
        journal: Journal | None = None,
        traces: Traces = NO_TRACES,
        meter: Meter = NO_METER,
        levels: Levels | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_active` workflows run at once; more are refused. What may be None is as for Executor."""
        self._home, self._shelf, self._languages, self._max_active = home, shelf, languages, max_active
        self._lookout, self._journal, self._levels = lookout, journal, levels
        self._traces, self._meter, self._clock = traces, meter, clock
        self._last_number = 0
        self._admitting: Counter[str] = Counter()  # by tenant
        self.claims = Claims()
        self.life = 0  # how often all was let go of
        self.unreadable: dict[str, str] = {}  # workflows that this version cannot go on with, and why

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
        self._languages.check(workflow)
        origin = self._traces.here()
        key = key_of(tenant, idempotency_key)
        content = "" if key is None else digest(workflow, inputs, overrides)
        known = await self._claimed_before(key, content)
        if known is not None:
            return known.board.record()
        self._home.check_open()
        active = self._shelf.num_active + self._admitting.total()
        if active >= self._max_active:
            raise Exhausted(f"{active} workflows are active, expected at most {self._max_active}")
        if max_of_tenant is not None:
            active = self._shelf.num_active_of(tenant) + self._admitting[tenant]
            if active >= max_of_tenant:
                self._meter.refused("max_workflows")
                raise Exhausted(f"{active} workflows of this tenant are active, expected at most {max_of_tenant}")
        entering = ExitStack()  # until it is on the shelf, or will not be
        self._admitting[tenant] += 1
        entering.callback(self._admitting.subtract, (tenant,))
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
                namespace=self._languages.namespace(tenant),
                max_context=prepared.book.language.max_context,
                seed=_seed_of(prepared.run),
                created_at=self._clock(),
                document=document,
            )
            execution = self._home.execution_of(submission, prepared, what.notes)
            await self._accept(submission, execution, prepared, origin, entering.close)
        except KeyTaken as taken:
            if taken.content == content:
                raise
            raise used_before(idempotency_key) from None
        finally:
            entering.close()
        return execution.board.record()

    async def _accept(
        self,
        submission: Submission,
        execution: Execution,
        prepared: Prepared,
        origin: str,
        entered: Callable[[], None],
    ) -> None:
        """Start it, once it is in the journal: `entered` is called then. Raises Unavailable."""

        def enter() -> None:
            self._claim(submission)
            self._shelf.keep(submission, execution)
            entered()
            try:
                with going_on(f"tracing workflow {submission.workflow_id}"):
                    self._traces.follow(execution.board, origin)
                if self._lookout is None:
                    execution.begin()
                else:
                    self._lookout.enter(execution, prepared, submission.rank, execution.begin)
            finally:  # who waits with the same key is not to wait for ever
                if accepted is not None:
                    accepted.set_result(None)

        def forget() -> None:
            self.claims.drop(submission.workflow_id)
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
                self._shelf.keep(submission, finished)
                ended.append(finished)
            elif submission.namespace != self._languages.namespace(submission.tenant):
                num_foreign += 1
            else:
                await self._restore(each, life)
        if num_foreign:
            logger.warning("%d unfinished workflows of other models wait in the journal", num_foreign)
        self._shelf.ended_before(ended)
        self._home.sweep()

    async def _restore(self, stored: Stored, life: int) -> None:
        submission = stored.submission
        try:
            asked = await asyncio.to_thread(read_document, submission.document)
            self._languages.check(asked[0])
            prepared = await asyncio.to_thread(self._prepare, *asked, submission.tenant, submission.max_context)
            notes = notes_of(submission.document)
        except Exception as error:  # by a version that understands it, it may
            _log_odd("workflow %s cannot be restored: %s", submission, error)
            self.unreadable[submission.workflow_id] = str(error) or repr(error)
            return
        if life != self.life:  # others have it by now
            return
        execution = self._home.execution_of(submission, prepared, notes)
        problem: FailedPrecondition | None = None
        try:
            await execution.replay(stored.lines)
        except Exception as error:
            logger.exception("workflow %s cannot be restored", submission.workflow_id)
            problem = FailedPrecondition(f"cannot be restored: {error}")
        if life != self.life:
            return
        self._shelf.keep(submission, execution)
        if problem is not None:
            execution.abandon(problem)
            self._shelf.end(submission.workflow_id)
            return
        if execution.board.state in TERMINAL_WORKFLOW:
            self._home.retire(execution)
            return
        with going_on(f"tracing workflow {submission.workflow_id}"):
            self._traces.follow(execution.board, origin_of(submission.document), restored=True)
        go_on = execution.resume if execution.has_begun else execution.start
        if self._lookout is None:
            go_on()
        else:
            self._lookout.enter(execution, prepared, submission.rank, go_on, go_on)

    def let_go(self) -> None:
        """Others have all that came in: what is still on its way in is theirs, too."""
        self.life += 1
        self.unreadable.clear()
        for execution in self._shelf:
            with going_on(f"tracing workflow {execution.workflow_id}"):
                self._traces.let_go(execution.workflow_id)

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
        book = self._languages.new_book(tenant)
        if max_context is not None:
            book.language = replace(book.language, max_context=max_context)
        book.add_fixed(run.messages.values())
        for node in run.graph.nodes.values():
            if node.kind == "generate" and self._languages.are_several:
                book.of(node.model).read([key for source in node.sources if source.fixed for key in source.keys])
        return Prepared(run, book) if self._lookout is None else self._lookout.prepare(run, book)

    def _claim(self, submission: Submission, accepted: asyncio.Future[None] | None = None) -> None:
        given = submission.idempotency_key
        key = None if given is None else (submission.tenant, given)
        self.claims.put(key, submission.workflow_id, submission.content, accepted)

    async def _claimed_before(self, key: Key | None, content: str) -> Execution | Finished | None:
        workflow_id = await self.claims.find(key, content)
        if workflow_id is None or key is None:
            return None
        known = self._shelf.known(workflow_id)
        if known is None:
            raise FailedPrecondition(
                "is of a workflow that this server cannot go on with", field="idempotency_key", value=key[1]
            )
        return known


def _log_odd(message: str, submission: Submission, error: Exception) -> None:
    """With a traceback for what nobody foresaw."""
    is_foreseen = isinstance(error, LabanError | ValueError)
    logger.error(message, submission.workflow_id, error, exc_info=None if is_foreseen else error)


def _seed_of(run: Run) -> int:
    """The workflow's seed; without one, any: equal greedy runs agree all the same."""
    return secrets.randbits(63) if run.seed is None else run.seed
