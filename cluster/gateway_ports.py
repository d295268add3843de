"""What the gateway needs of the executor and the sessions, method by method."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypedDict

from laban.actors.calls import Sampling
from laban.cluster.audit.auditor import AuditRequest
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.records import AuditItem
from laban.cluster.chats import ChatAsk
from laban.cluster.records import (
    ClusterStatus,
    DrainProgress,
    Event,
    Hint,
    HintOutcome,
    Layout,
    Lease,
    MessageRecord,
    SessionPlacement,
    SessionRecord,
    StepExplanation,
    TokenChunk,
    WorkerStatus,
    WorkflowRecord,
)
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, Fidelity
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides


class LanguagePort(Protocol):
    """`cluster.messages.Language`."""

    def encode(self, text: str, field: str) -> list[int]: ...


class LanguagesPort(Protocol):
    """`cluster.languages.Languages`."""

    def of(self, tenant: str, model: str = "") -> LanguagePort: ...


class IntakePort(Protocol):
    """`cluster.intake.Intake`."""

    async def submit(
        self,
        workflow: Workflow,
        inputs: Mapping[str, object],
        overrides: Overrides | None = None,
        *,
        idempotency_key: str | None = None,
        tenant: str = "",
        max_of_tenant: int | None = None,
    ) -> WorkflowRecord: ...


class ExecutorPort(Protocol):
    """`cluster.executor.Executor`, which says what each method does and raises."""

    @property
    def languages(self) -> LanguagesPort: ...

    @property
    def intake(self) -> IntakePort: ...

    def watch(
        self, workflow_id: str, after_event: int = 0, *, tenant: str | None = None
    ) -> AsyncGenerator[Event | TokenChunk, None]: ...

    def get(self, workflow_id: str, *, tenant: str | None = None) -> WorkflowRecord: ...

    def list(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = (), tenant: str | None = None
    ) -> tuple[list[WorkflowRecord], str]: ...

    async def cancel(self, workflow_id: str, *, tenant: str | None = None) -> WorkflowRecord: ...

    async def delete(self, workflow_id: str, *, tenant: str | None = None) -> None: ...

    async def lease_step(
        self,
        tools: Collection[str],
        *,
        workflow_id: str = "",
        handler: str = "",
        wait_s: float = 20.0,
        tenant: str = "",
    ) -> Lease | None: ...

    async def renew_lease(self, lease_id: str, *, tenant: str = "") -> Lease: ...

    async def complete_step(
        self,
        workflow_id: str,
        address: str,
        text: str | None = None,
        *,
        output: object = None,
        lease_id: str = "",
        tenant: str | None = None,
    ) -> WorkflowRecord: ...

    async def fail_step(
        self,
        workflow_id: str,
        address: str,
        message: str,
        *,
        lease_id: str = "",
        final: bool = False,
        tenant: str | None = None,
    ) -> WorkflowRecord: ...

    def explain(self, workflow_id: str, address: str, *, tenant: str | None = None) -> StepExplanation: ...


class AuditsPort(Protocol):
    """`cluster.audit.audits.Audits`, which says what it does and raises."""

    def run(
        self, request: AuditRequest, *, tenant: str = "", max_of_tenant: int | None = None
    ) -> AsyncGenerator[AuditItem, None]: ...

    async def record(self, workflow: Workflow, findings: Iterable[Finding], *, tenant: str = "") -> None: ...

    async def clear(self, workflow: str, *, tenant: str = "") -> None: ...


class PageWish(TypedDict):
    """`page_size` 0 is the usual one."""

    page_size: int
    page_token: str
    states: Collection[str]
    tenant: str | None


class PagesPort(Protocol):
    """`cluster.switchboard.Switchboard.page`."""

    async def __call__(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = (), tenant: str | None = None
    ) -> tuple[list[WorkflowRecord], str]: ...


class SessionsPort(Protocol):
    """`cluster.sessions.Sessions`, which says what each method does and raises."""

    def open(
        self,
        ttl_s: float | None = None,
        *,
        model: str = "",
        adapter: str = "",
        tenant: str = "",
        max_of_tenant: int | None = None,
    ) -> SessionRecord: ...

    def model_of(self, session_id: str, *, tenant: str = "") -> str: ...

    def get(self, session_id: str, *, tenant: str = "") -> SessionRecord: ...

    def close(self, session_id: str, *, tenant: str = "") -> None: ...

    def release(
        self, session_id: str, message_ids: Collection[str] = (), *, everything: bool = False, tenant: str = ""
    ) -> int: ...

    def hint(
        self, session_id: str, hints: Sequence[Hint], ttl_s: float | None = None, *, tenant: str = ""
    ) -> tuple[HintOutcome, ...]: ...

    def release_hints(
        self, session_id: str, agents: Collection[str] = (), *, everything: bool = False, tenant: str = ""
    ) -> int: ...

    async def prefill(
        self,
        session_id: str,
        role: str,
        *,
        text: str | None = None,
        token_ids: Sequence[int] | None = None,
        name: str | None = None,
        view: Sequence[SessionPlacement] = (),
        layout: Layout = "packed",
        position: int | None = None,
        fidelity: Fidelity = "exact",
        recompute_share: float = RECOMPUTE_SHARE,
        tenant: str = "",
    ) -> MessageRecord: ...

    def decode(
        self,
        session_id: str,
        *,
        sampling: Sampling,
        role: str = "assistant",
        name: str | None = None,
        prefill: str = "",
        view: Sequence[SessionPlacement] = (),
        layout: Layout = "packed",
        position: int | None = None,
        fidelity: Fidelity = "exact",
        recompute_share: float = RECOMPUTE_SHARE,
        tenant: str = "",
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]: ...

    def chat(
        self, session_id: str, ask: ChatAsk, *, tenant: str = ""
    ) -> AsyncGenerator[TokenChunk | MessageRecord, None]: ...


class FleetPort(Protocol):
    """`cluster.fleet.Fleet`, which says what each method does and raises."""

    async def add_worker(self, *, model: str = "") -> WorkerStatus: ...

    def drain_worker(self, worker_id: str) -> AsyncGenerator[DrainProgress, None]: ...


class StatusPort(Protocol):
    """What the cluster is doing, as of now."""

    def __call__(self) -> ClusterStatus: ...
