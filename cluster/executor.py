"""Runs workflows: takes them in, drives them to their end, keeps what they did for those who ask.

Lives in one event loop. Knows the workers through ports: neither Ray nor protobuf appear here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from laban.actors.errors import Conflict, Exhausted, InvalidInput, NotFound
from laban.cluster.answers import check_output, text_of
from laban.cluster.dispatch import Dispatcher
from laban.cluster.execution import Execution
from laban.cluster.explaining import explained
from laban.cluster.lease_desk import LeaseDesk, ended
from laban.cluster.lookout import Lookout, Prepared
from laban.cluster.messages import FramingPort, Language, MessageBook, TokenizerPort
from laban.cluster.moves import Stopped
from laban.cluster.records import (
    TERMINAL_WORKFLOW,
    ClusterStatus,
    Event,
    Lease,
    StepExplanation,
    TokenChunk,
    WorkflowRecord,
)
from laban.cluster.status import cluster_status
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides

DEFAULT_PAGE = 50
MAX_PAGE = 1000
MAX_KEY = 128


@dataclass(frozen=True, slots=True)
class ExecutorLimits:
    max_active: int = 256  # workflows running at once; more are refused
    max_finished: int = 1000  # kept for Get, List and Watch; the oldest is forgotten first


@dataclass(frozen=True, slots=True)
class _Claim:
    """An idempotency key's workflow, and a digest of what was submitted."""

    workflow_id: str
    content: str


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a `lookout` workers are told nothing of what is to come, and no workflow is ever held back."""
        self._dispatcher = dispatcher
        self._desk = LeaseDesk(time_of_day=clock)
        self._framing = framing
        self._tokenizer = tokenizer
        self._limits = limits or ExecutorLimits()
        self._clock = clock
        self._started_at = clock()
        self._lookout = lookout
        self.likelihoods = Likelihoods() if lookout is None else lookout.likelihoods
        self._executions: OrderedDict[str, Execution] = OrderedDict()  # oldest first
        self._numbers: dict[str, int] = {}  # workflow id -> its place in the order of submission
        self._last_number = 0
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._admitting = 0
        self._claims: dict[tuple[str, str], _Claim] = {}  # (tenant, idempotency key)
        self._claimed: dict[str, tuple[str, str]] = {}

    def start(self) -> None:
        """Start the dispatcher, and looking ahead."""
        self._dispatcher.start()
        if self._lookout is not None:
            self._lookout.start()

    async def stop(self) -> None:
        """Cancel what runs, so that every watch ends, and close the workers."""
        for execution in list(self._executions.values()):
            execution.cancel()
        self._desk.close()
        if self._lookout is not None:
            await self._lookout.stop()
        await self._dispatcher.stop()

    def language(self, tenant: str) -> Language:
        """What turns this tenant's text into calls. Encodings never cross tenants."""
        info = self._dispatcher.info
        return Language(self._framing, self._tokenizer, f"{info.namespace}/{tenant}", info.max_context)

    async def submit(
        self,
        workflow: Workflow,
        inputs: Mapping[str, object],
        overrides: Overrides | None = None,
        *,
        idempotency_key: str | None = None,
        tenant: str = "",
    ) -> WorkflowRecord:
        """Start a workflow, or return the one that the same key and content started before.

        Raises WorkflowErrors for bad inputs, Conflict for a key that was used with other content, Exhausted
        for too many active workflows, InvalidInput and OutOfRange for a message that cannot be framed or is
        longer than the context.
        """
        overrides = overrides or Overrides()
        key = self._checked_key(idempotency_key, tenant)
        content = "" if key is None else _digest(workflow, inputs, overrides)
        known = self._claimed_before(key, content)
        if known is not None:
            return known.board.record()
        active = len(self._executions) - len(self._finished) + self._admitting
        if active >= self._limits.max_active:
            raise Exhausted(f"{active} workflows are active, expected at most {self._limits.max_active}")
        self._admitting += 1
        try:
            # Rendering and tokenizing may take long: the loop goes on meanwhile.
            prepared = await asyncio.to_thread(self._prepare, workflow, inputs, overrides, tenant)
        finally:
            self._admitting -= 1
        known = self._claimed_before(key, content)  # the same key may have come twice at once
        if known is not None:
            return known.board.record()
        workflow_id = f"wf-{secrets.token_hex(8)}"
        run, rank = prepared.run, self.next_rank()
        execution = Execution(
            workflow_id,
            workflow.name,
            run,
            prepared.book,
            self._dispatcher,
            self._desk,
            seed=_seed_of(run),
            rank=rank,
            clock=self._clock,
            on_end=self._retire,
            **({} if self._lookout is None else self._lookout.watching(workflow_id)),
        )
        self._executions[workflow_id] = execution
        self._numbers[workflow_id] = rank
        if key is not None:
            self._claims[key] = _Claim(workflow_id, content)
            self._claimed[workflow_id] = key
        if self._lookout is None:
            execution.begin()
        else:
            self._lookout.enter(execution, prepared, rank, execution.begin)
        return execution.board.record()

    async def watch(self, workflow_id: str, after_event: int = 0) -> AsyncGenerator[Event | TokenChunk, None]:
        """Events after number `after_event`, then live ones and token chunks, to the workflow's end.

        A watch that begins while steps run gets their text so far, one chunk for each. One that is slow gets
        fewer and larger chunks, and every event. Raises NotFound, InvalidInput, Exhausted.
        """
        feed = self._execution(workflow_id).board.feed.watch(after_event)
        try:
            async for item in feed:
                yield item
        finally:
            await feed.aclose()

    def get(self, workflow_id: str) -> WorkflowRecord:
        return self._execution(workflow_id).board.record()

    def list(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = ()
    ) -> tuple[list[WorkflowRecord], str]:
        """A page of workflows, newest first and without their steps, and the token of the next page or ""."""
        if not 0 <= page_size <= MAX_PAGE:
            raise InvalidInput(f"expected 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}", field="page_size", value=page_size)
        before = self._last_number + 1
        if page_token:
            # Its length first: Python refuses to read thousands of digits.
            if not (page_token.isascii() and page_token.isdigit() and len(page_token) <= len(str(before))):
                raise InvalidInput("expected a token from an earlier page", field="page_token", value=page_token)
            before = int(page_token)
        size = page_size or DEFAULT_PAGE
        found = [
            execution
            for workflow_id, execution in reversed(self._executions.items())
            if self._numbers[workflow_id] < before and (not states or execution.board.state in states)
        ]
        page = found[:size]
        more = str(self._numbers[page[-1].workflow_id]) if len(found) > size else ""
        return [execution.board.record(with_steps=False) for execution in page], more

    async def cancel(self, workflow_id: str) -> WorkflowRecord:
        """Stop a workflow; one that has ended stays as it is."""
        execution = self._execution(workflow_id)
        if execution.board.state not in TERMINAL_WORKFLOW:
            await execution.inbox.deliver(Stopped())
        return execution.board.record()

    async def lease_step(
        self, tools: Collection[str], *, workflow_id: str = "", handler: str = "", wait_s: float = 20.0
    ) -> Lease | None:
        """An external step of these tools, for as long as the lease runs; None if none came in time.

        Raises NotFound, and FailedPrecondition if the workflow, where one is named, has ended or ends meanwhile.
        """
        if workflow_id and self._execution(workflow_id).board.state in TERMINAL_WORKFLOW:
            raise ended(workflow_id)
        return await self._desk.lease(tools, workflow_id, handler, wait_s)

    async def renew_lease(self, lease_id: str) -> Lease:
        """The lease without its messages, to run for its full time again. Raises FailedPrecondition if it has ended."""
        return self._desk.renew(lease_id)

    async def complete_step(
        self, workflow_id: str, address: str, text: str | None = None, *, output: object = None, lease_id: str = ""
    ) -> WorkflowRecord:
        """Answer an external step by its text, or by any JSON value. Idempotent: the same answer again changes nothing.

        Raises NotFound, FailedPrecondition for a step that does not wait and a lease that has run out, Conflict for
        another answer than before, InvalidInput for one that its schema does not allow, OutOfRange for a text longer
        than the context. Under a lease the record has no steps: of a large fan-out each answer would bring them all.
        """
        execution = self._execution(workflow_id)
        schema = execution.external.output_schema(address)
        if schema is not None:
            await asyncio.to_thread(check_output, schema, text, output)
        move = execution.external.completed(address, text_of(output) if text is None else text, lease_id)
        if move is not None:
            await execution.inbox.deliver(move)
        return execution.board.record(with_steps=not lease_id)

    async def fail_step(
        self, workflow_id: str, address: str, message: str, *, lease_id: str = "", final: bool = False
    ) -> WorkflowRecord:
        """Say that an external step failed; `final`: trying again is of no use. Raises as `complete_step` does."""
        execution = self._execution(workflow_id)
        move = execution.external.failed(address, message, lease_id, final=final)
        if move is not None:
            await execution.inbox.deliver(move)
        return execution.board.record(with_steps=not lease_id)

    def explain(self, workflow_id: str, address: str) -> StepExplanation:
        """Why a step's call went where it went.

        Raises NotFound for an unknown workflow or step, and for a step without a decision: one without a call, not
        routed yet, or too long ago.
        """
        execution = self._execution(workflow_id)
        decision = self._dispatcher.explain(f"{workflow_id}/{address}")
        uses = {} if self._lookout is None else self._lookout.foresight.uses(workflow_id)
        return explained(execution.board, address, decision, execution.next_uses(address, uses))

    def status(self, *, sessions_open: int = 0) -> ClusterStatus:
        status = cluster_status(
            self._dispatcher,
            workflows_running=len(self._executions) - len(self._finished),
            sessions_open=sessions_open,
            uptime_s=self._clock() - self._started_at,
        )
        return status if self._lookout is None else replace(status, workflows_held=self._lookout.num_held)

    def next_rank(self) -> int:
        """The place in the order of submission of what comes next: when memory is short, who came first goes first."""
        self._last_number += 1
        return self._last_number

    def _prepare(self, workflow: Workflow, inputs: Mapping[str, object], overrides: Overrides, tenant: str) -> Prepared:
        run = Run(workflow, inputs, overrides)
        book = MessageBook(self.language(tenant))
        for key, message in run.messages.items():
            path = f"agents.{key[6:]}.prompt" if key.startswith("agent:") else f"messages.{key}"
            book.add_text(key, message.role, message.text, message.name, path=path)
        return Prepared(run, book) if self._lookout is None else self._lookout.prepare(run, book)

    def _execution(self, workflow_id: str) -> Execution:
        execution = self._executions.get(workflow_id)
        if execution is None:
            raise NotFound("no such workflow", field="workflow_id", value=workflow_id)
        return execution

    def _checked_key(self, key: str | None, tenant: str) -> tuple[str, str] | None:
        if not key:
            return None
        if len(key) > MAX_KEY:
            raise InvalidInput(f"expected at most {MAX_KEY} characters", field="idempotency_key", value=key)
        return (tenant, key)

    def _claimed_before(self, key: tuple[str, str] | None, content: str) -> Execution | None:
        claim = None if key is None else self._claims.get(key)
        if claim is None or key is None:
            return None
        if claim.content != content:
            raise Conflict("was used before, with other content", field="idempotency_key", value=key[1])
        return self._executions[claim.workflow_id]

    def _retire(self, execution: Execution) -> None:
        """Keep what has ended, up to the limit, and what there is to learn from it."""
        self.likelihoods.observe(execution.board.name, execution.decisions)
        self._dispatcher.directory.unwatch(execution.workflow_id)
        if self._lookout is not None:
            self._lookout.leave(execution)
        self._finished[execution.workflow_id] = None
        while len(self._finished) > self._limits.max_finished:
            oldest, _ = self._finished.popitem(last=False)
            del self._executions[oldest], self._numbers[oldest]
            key = self._claimed.pop(oldest, None)
            if key is not None:
                del self._claims[key]


def _digest(workflow: Workflow, inputs: Mapping[str, object], overrides: Overrides) -> str:
    changes = sorted((address, name, repr(value)) for (address, name), value in overrides.set.items())
    content = [workflow.model_dump(mode="json"), dict(inputs), overrides.fidelity, overrides.seed, changes]
    return blake2b(json.dumps(content, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _seed_of(run: Run) -> int:
    """The workflow's seed; without one, any: equal greedy runs agree all the same."""
    return secrets.randbits(63) if run.seed is None else run.seed
