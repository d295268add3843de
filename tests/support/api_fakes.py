"""A scripted executor and scripted sessions: what the gateway is tested over. They answer, and note what was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from laban.actors.calls import CacheCounters, TokenLogprob, WorkerRates
from laban.actors.errors import Conflict, FailedPrecondition, LabanError, NotFound, OutOfRange
from laban.actors.reach import Reach
from laban.cluster.client import AsyncClient
from laban.cluster.gateway import Gateway, GatewayLimits
from laban.cluster.records import (
    ClusterStatus,
    DirectoryStatus,
    Divergence,
    DrainProgress,
    ErrorInfo,
    Event,
    FidelityNote,
    Hint,
    HintOutcome,
    Lease,
    LeaseMessage,
    MemberStatus,
    MessageRecord,
    ModelStatus,
    NextUse,
    RoutingCandidate,
    RoutingDecision,
    SessionRecord,
    StepExplanation,
    StepResult,
    TokenChunk,
    WorkerStatus,
    WorkflowRecord,
)
from laban.cluster.usage import Usage

YAML = """\
version: 1
name: greet
inputs:
  who: {type: string}
messages:
  task: "Greet {{ who }}."
steps:
  - step: answer
    read: [task]
outputs:
  reply: answer
"""

STEP = StepResult(
    "answer[bob,2]",
    "answer",
    "bob",
    2,
    "succeeded",
    "mixed",
    "Hélló 🌍",
    (1, 2, 3),
    30,
    20,
    15,
    10,
    3,
    12.5,
    40.25,
    "w0",
    "stop",
    None,
    (TokenLogprob(1, -0.5, ((1, -0.5), (7, -1.25))), TokenLogprob(2, -0.25)),
    {"score": 7, "why": None, "all": ["a", 0.5]},
    "tests",
    {"path": "src", "deep": {"n": [1, True]}},
    "tiny",
    "tuned",
    tokens_drafted=8,
    tokens_accepted=5,
    earlier_attempts=Usage(60, 40, 6, 30, 9, 20.5),
)
FAILED = StepResult("final", "final", state="failed", attempt=3, error=ErrorInfo("UNAVAILABLE", "died", "steps[1]"))
NOTES = (FidelityNote("draft", 1, "direct", 0.25, 40, "within 0.5"), FidelityNote("draft", level="blended", kl=0.5))
RECORD = WorkflowRecord(
    "wf-1", "greet", "failed", 1_700_000_000.125, 1_700_000_001.5, (("b", "x"), ("a", "y")), (STEP, FAILED),
    ErrorInfo("UNAVAILABLE", "died"), 9, "waits", NOTES,
)  # fmt: skip
LEASE = Lease(
    "lease-1", "wf-1", "human[2]", "tests", 3, {"path": "src", "n": 2},
    (LeaseMessage("task", "user", "Ann", "What?"), LeaseMessage("answer[bob,2]", "assistant", "", "That.")),
    "Run them.", 30.5, 1_700_000_030.5, {"type": "object"},
)  # fmt: skip
EVENTS: tuple[Event | TokenChunk, ...] = (
    Event(1, "wf-1", 5.0, "workflow_state", workflow_state="running", held="waits", notes=NOTES),
    Event(
        2, "wf-1", 6.0, "step_state", address="answer", attempt=1, step_state="running", worker="w0", tool="tests",
        args={"path": "src"},
    ),
    TokenChunk("wf-1", "answer", 1, 0, (5, 6), "Hi"),
    Event(3, "wf-1", 7.25, "step_result", address="answer[bob,2]", attempt=2, result=STEP),
    Event(4, "wf-1", 8.0, "workflow_state", workflow_state="succeeded", outputs=(("z", "1"), ("a", "2"))),
)  # fmt: skip
MESSAGE = MessageRecord(
    "s-1", "m1", "assistant", "bob", 7, 12, "direct", 7, 6, 2, 5, 4, 1.5, 2.5, "w1", "length", "text", (4, 5),
    (TokenLogprob(4, -1.0),), ("view[0] and view[1] share the positions 3 to 4",), 6, 3,
)  # fmt: skip
WORKER = WorkerStatus(
    "w0", "e1", True, "cpu", "float32", "reference", 1, 2, 300, 64, 60, 16, 1024, 9, True, 1 << 30, 3 << 20, 1 << 40,
    5 << 32, WorkerRates(1200.5, 0.007, 2.5e10, 3e9, 1e9, 2e9, 4e9, 5e8),
    CacheCounters(900, 80, 70, 60, 50, 1 << 33, 1 << 34, 7, 6, 5, 4, 3, 2, 1, 0.25), "tiny", "2 tries have failed",
    Reach("m1", ("cma", "object_store")),
)  # fmt: skip
STATUS = ClusterStatus(
    "0.1.0",
    True,
    "tiny",
    2048,
    (WORKER,),
    3,
    2,
    12.5,
    1,
    "cost",
    "steps",
    DirectoryStatus(2, 40, 12, 3, 1000, 10, 1200),
    journal="available",
    members=(MemberStatus("4711", "10.0.0.7:8470", "up", 3, True),),
    divergences=(Divergence("acme", "debate", 1_700_000_000.5, 0.25, 40, 0.125, falls_back=True),),
    models=(ModelStatus("tiny", 2048, 1, 1), ModelStatus("other", 4096, 2, 0)),
)
EXPLANATION = StepExplanation(
    "wf-1",
    "answer[bob,2]",
    RoutingDecision(
        "wf-1/answer[bob,2]", 2, 1_700_000_000.5, "cost", "w1",
        (
            RoutingCandidate("w1", (12.0, 0.0), 1.5, 2.5, 3.5, 4.5, 100, 90, 80, 70, 60),
            RoutingCandidate("w0", (40.25, 3.0), queue_ms=38.0, encode_ms=2.25, tokens_device=400),
        ),
        ("ttft_ms", "successor_ms"), 9,
    ),
    (NextUse("task", 2, 0.75, 0.5),),
)  # fmt: skip
DRAINED = (DrainProgress("w0", 2, 7), DrainProgress("w0", 0, 3), DrainProgress("w0", 0, 0, True))


@dataclass
class FakeExecutor:
    """`script` is what a watch brings; with `hang` it then waits until it is closed."""

    script: tuple[Event | TokenChunk, ...] = EVENTS
    hang: bool = False
    error: Exception | None = None
    submitted: list[Any] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    tenants: list[str | None] = field(default_factory=list)  # as whom it was asked
    keys: dict[str, str] = field(default_factory=dict)
    watches_open: int = 0
    produced: int = 0
    endless: bool = False
    submit_gate: asyncio.Event | None = None

    @property
    def languages(self) -> Any:
        language = SimpleNamespace(encode=lambda text, field: [ord(char) for char in text])
        return SimpleNamespace(of=lambda tenant, model="": language)

    @property
    def intake(self) -> FakeExecutor:
        return self

    async def submit(self, workflow: Any, inputs: Any, overrides: Any = None, **options: Any) -> WorkflowRecord:
        self.tenants.append(options.pop("tenant"))
        options.pop("max_of_tenant")
        if self.error is not None:
            raise self.error
        if self.submit_gate is not None:
            await self.submit_gate.wait()
        self.submitted.append(SimpleNamespace(workflow=workflow, inputs=inputs, overrides=overrides, **options))
        key = options.get("idempotency_key")
        content = json.dumps([workflow.model_dump(mode="json"), inputs])
        if key is not None and self.keys.setdefault(key, content) != content:
            raise Conflict("was used before, with other content", field="idempotency_key", value=key)
        return RECORD

    async def watch(
        self, workflow_id: str, after_event: int = 0, *, tenant: str | None
    ) -> AsyncGenerator[Event | TokenChunk, None]:
        self.tenants.append(tenant)
        self._find(workflow_id)
        self.calls.append(("watch", workflow_id, after_event))
        self.watches_open += 1
        try:
            for item in self.script:
                if not isinstance(item, Event) or item.number > after_event:
                    yield item
            while self.endless:
                self.produced += 1
                yield TokenChunk("wf-1", "answer", 1, self.produced, (1,) * 100, "x" * 10_000)
                await asyncio.sleep(0)
            if self.hang:
                await asyncio.Event().wait()
        finally:
            self.watches_open -= 1

    def get(self, workflow_id: str, *, tenant: str | None) -> WorkflowRecord:
        self.tenants.append(tenant)
        if self.error is not None:
            raise self.error
        return self._find(workflow_id)

    def list(self, *, tenant: str | None, **options: Any) -> tuple[list[WorkflowRecord], str]:
        self.tenants.append(tenant)
        self.calls.append(("list", options))
        return [RECORD], "7"

    async def cancel(self, workflow_id: str, *, tenant: str | None) -> WorkflowRecord:
        self.tenants.append(tenant)
        self.cancelled.append(workflow_id)
        return self._find(workflow_id)

    async def delete(self, workflow_id: str, *, tenant: str | None) -> None:
        self.tenants.append(tenant)
        self._find(workflow_id)
        self.deleted.append(workflow_id)

    async def lease_step(self, tools: Any, *, tenant: str, **options: Any) -> Lease | None:
        self.tenants.append(tenant)
        self.calls.append(("lease", tuple(tools), options))
        return None if options["wait_s"] == 0 else LEASE

    async def renew_lease(self, lease_id: str, *, tenant: str) -> Lease:
        self.tenants.append(tenant)
        self.calls.append(("renew", lease_id))
        return LEASE

    async def complete_step(
        self, workflow_id: str, address: str, text: str | None = None, *, tenant: str | None, **options: Any
    ) -> WorkflowRecord:
        self.tenants.append(tenant)
        self.calls.append(("complete", workflow_id, address, text, options))
        return RECORD

    async def fail_step(
        self, workflow_id: str, address: str, message: str, *, tenant: str | None, **options: Any
    ) -> WorkflowRecord:
        self.tenants.append(tenant)
        self.calls.append(("fail", workflow_id, address, message, options))
        return RECORD

    def explain(self, workflow_id: str, address: str, *, tenant: str | None) -> StepExplanation:
        self.tenants.append(tenant)
        self._find(workflow_id)
        if address != "answer[bob,2]":
            raise NotFound("was not routed yet", field="address", value=address)
        return EXPLANATION

    def _find(self, workflow_id: str) -> WorkflowRecord:
        if workflow_id != "wf-1":
            raise NotFound("no such workflow", field="workflow_id", value=workflow_id)
        return RECORD


@dataclass
class FakeSessions:
    """Decode brings two chunks and the message; with `hang` it waits after the first until it is closed."""

    hang: bool = False
    calls: list[Any] = field(default_factory=list)
    aborted: int = 0
    open_sessions: set[str] = field(default_factory=set)

    def open(self, ttl_s: float | None = None, **options: Any) -> SessionRecord:
        self.calls.append(("open", ttl_s))
        self.open_sessions.add("s-1")
        return SessionRecord("s-1", 600.0 if ttl_s is None else ttl_s, 10.0, 610.0)

    def model_of(self, session_id: str, **options: Any) -> str:
        self._find(session_id)
        return ""

    def get(self, session_id: str, **options: Any) -> SessionRecord:
        self._find(session_id)
        return SessionRecord("s-1", 600.0, 10.0, 610.0, (MESSAGE,))

    def close(self, session_id: str, **options: Any) -> None:
        self._find(session_id)
        self.open_sessions.discard(session_id)

    def release(self, session_id: str, message_ids: Any = (), *, everything: bool = False, **options: Any) -> int:
        self._find(session_id)
        self.calls.append(("release", tuple(message_ids), everything))
        return 99 if everything else len(message_ids)

    def hint(self, session_id: str, hints: Any, ttl_s: float | None = None, **options: Any) -> tuple[HintOutcome, ...]:
        self._find(session_id)
        self.calls.append(("hint", tuple(hints), ttl_s))
        return tuple(self._hinted(hint) for hint in hints)

    def _hinted(self, hint: Hint) -> HintOutcome:
        if not hint.reads:
            return HintOutcome(hint.agent, "ignored", "reads nothing")
        return HintOutcome(hint.agent, "clipped", "pins last 60 s at most", len(hint.reads), 40, 60.0, 30.5)

    def release_hints(self, session_id: str, agents: Any = (), *, everything: bool = False, **options: Any) -> int:
        self._find(session_id)
        self.calls.append(("release_hints", tuple(agents), everything))
        return 99 if everything else len(agents)

    async def prefill(self, session_id: str, role: str, *, tenant: str, **options: Any) -> MessageRecord:
        self._find(session_id)
        self.calls.append(("prefill", role, options))
        for place, item in enumerate(options["view"]):
            if (item.position or 0) >= 2048:
                raise OutOfRange("expected 0 to 2047", field=f"view[{place}].position", value=item.position)
        return MESSAGE

    async def decode(
        self, session_id: str, *, tenant: str, **options: Any
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]:
        self._find(session_id)
        self.calls.append(("decode", options))
        ended = False
        try:
            yield TokenChunk("", "m1", 1, 0, (4,), "te")
            if self.hang:
                await asyncio.Event().wait()
            yield TokenChunk("", "m1", 1, 1, (5,), "xt")
            ended = True
            yield MESSAGE
        finally:
            self.aborted += not ended

    def _find(self, session_id: str) -> None:
        if session_id not in self.open_sessions:
            raise NotFound("no such session, or it has ended", field="session_id", value=session_id)


@dataclass
class FakeFleet:
    """Adds and drains at once; with `hang` it waits after the first word until it is closed."""

    hang: bool = False
    error: Exception | None = None
    added: int = 0
    drains_open: int = 0
    gate: asyncio.Event | None = None

    async def add_worker(self, *, model: str = "") -> WorkerStatus:
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            await self.gate.wait()
        self.added += 1
        return WORKER

    async def drain_worker(self, worker_id: str) -> AsyncGenerator[DrainProgress, None]:
        if worker_id == "last":
            raise FailedPrecondition("is the last worker", field="worker_id", value=worker_id)
        if worker_id != "w0":
            raise NotFound("no such worker", field="worker_id", value=worker_id)
        self.drains_open += 1
        try:
            for progress in DRAINED:
                yield progress
                if self.hang:
                    await asyncio.Event().wait()
        finally:
            self.drains_open -= 1


@dataclass
class Served:
    """A gateway on a loopback port over the fakes, and a client of it."""

    executor: FakeExecutor
    sessions: FakeSessions
    fleet: FakeFleet
    gateway: Gateway
    port: int
    client: AsyncClient

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(
    executor: FakeExecutor | None = None,
    sessions: FakeSessions | None = None,
    limits: GatewayLimits | None = None,
    fleet: FakeFleet | None = None,
) -> AsyncIterator[Served]:
    executor, sessions, fleet = executor or FakeExecutor(), sessions or FakeSessions(), fleet or FakeFleet()
    gateway = Gateway(executor, sessions, lambda: STATUS, limits, fleet=fleet)
    port = await gateway.start("127.0.0.1", 0)
    client = AsyncClient(f"127.0.0.1:{port}", timeout_s=20)
    try:
        yield Served(executor, sessions, fleet, gateway, port, client)
    finally:
        await client.close()
        await gateway.stop(0)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fail, saying `what`, if it does not within ten seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still not so: {what}")


async def error_of(awaitable: Any) -> LabanError:
    """The LabanError that awaiting (or reading a stream) raises."""
    try:
        if hasattr(awaitable, "__aiter__"):
            async for _ in awaitable:
                continue
        else:
            await awaitable
    except LabanError as error:
        return error
    raise AssertionError("no error")
