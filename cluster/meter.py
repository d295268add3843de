"""Who is told what happens, to count it or to log it."""

from __future__ import annotations

from laban.cluster.audit.tally import Tally
from laban.cluster.records import MessageRecord, StepResult, WorkflowRecord


class Meter:
    """This one lets everything pass. Methods are called in the event loop; none of them waits or raises."""

    # Workflows and sessions

    def workflow_submitted(self, workflow_id: str, name: str) -> None: ...

    def workflow_restored(self, workflow_id: str, name: str) -> None:
        """It was taken in before a restart."""

    def step_ended(self, workflow_id: str, workflow: str, kind: str, result: StepResult) -> None:
        """`kind` is generate, external or workflow."""

    def workflow_ended(self, record: WorkflowRecord) -> None:
        """The record has no steps."""

    def message_made(self, record: MessageRecord, model: str) -> None:
        """In a session or a chat, by that model."""

    # Calls

    def call_routed(self, policy: str, worker_id: str, decided_s: float, model: str) -> None:
        """To decide took so many seconds."""

    def policy_failed(self) -> None:
        """A user's own, of routing: another one decided."""

    def call_admitted(self, waited_s: float, model: str) -> None:
        """By its worker, so many seconds after it was ready."""

    def call_ended(self, worker_id: str, code: str, model: str) -> None: ...

    def call_failed(self, first_token_s: float, model: str) -> None:
        """So many seconds after it was ready it had its first token, or ended without one."""

    def call_requeued(self) -> None: ...

    def worker_lost(self) -> None: ...

    def directory_confirmed(self, lag_s: float) -> None:
        """What a call had left at a worker, so many seconds later."""

    # Audits in service

    def audit_ended(self, outcome: str) -> None:
        """done, dropped or failed."""

    def audit_compared(self, workflow: str, fidelity: str, tally: Tally) -> None:
        """With `exact`: one call of it."""

    def audit_spent(self, worker_id: str, seconds: float) -> None:
        """Of a worker's time."""

    # Requests

    def request_begun(self, method: str) -> None:
        """`method` is Service/Method."""

    def request_ended(self, method: str, code: str, seconds: float | None) -> None:
        """`seconds` None is said of streams."""

    def refused(self, reason: str) -> None:
        """A request, at the door: unauthenticated, denied, or the name of a quota."""

    def loop_lagged(self, seconds: float) -> None:
        """The event loop did what was due so much later."""


NO_METER = Meter()
