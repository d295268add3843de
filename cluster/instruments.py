"""Counts what happens, and renders all metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from laban.cluster.audit.tally import Tally
from laban.cluster.meter import Meter
from laban.cluster.metrics import MAX_VALUES, METRICS, OTHER, REFUSALS
from laban.cluster.metrics_collector import SurveyCollector
from laban.cluster.records import MessageRecord, StepResult, WorkflowRecord
from laban.cluster.survey import Survey
from laban.cluster.usage import Counts

Kind = TypeVar("Kind", Counter, Gauge, Histogram)
OUTCOMES = ("succeeded", "failed", "cancelled")

disable_created_metrics()  # type: ignore[no-untyped-call]  # each would double a metric's series, for a time that nobody asks for


class Bounded:
    """Values of one label that users choose: the first MAX_VALUES, then OTHER."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= MAX_VALUES:
                return OTHER
            self._seen.add(value)
        return value


class Instruments(Meter):
    """One for each control plane. What it is told lands here; the rest is surveyed when somebody asks."""

    def __init__(self, model: str, survey: Callable[[], Survey]) -> None:
        """`model` is the default one. `survey` is called in the event loop."""
        self._model, self._survey = model, survey
        self._families = CollectorRegistry()
        ProcessCollector("", lambda: "self", "/proc", self._families)
        GCCollector(self._families)
        events = [metric for metric in METRICS.values() if metric.told == "events"]
        self._counters = {each.name: self._declared(Counter, each.name) for each in events if each.kind == "counter"}
        self._histograms = {
            each.name: self._declared(Histogram, each.name, buckets=each.bounds)
            for each in events
            if each.kind == "histogram"
        }
        self._open = self._declared(Gauge, "laban_grpc_open_requests")
        self._collector = SurveyCollector(model)
        self._families.register(self._collector)
        self._workflow, self._worker = Bounded(), Bounded()
        for metric in events:
            if metric.kind == "counter" and not metric.labels:  # so that the first one is a rise from 0
                self._count(metric.name, amount=0)
        self._histograms["laban_failed_first_token_seconds"].labels(model)
        for reason in REFUSALS:
            self._count("laban_refused_requests_total", reason, amount=0)

    def _declared(self, kind: type[Kind], name: str, **options: Any) -> Kind:
        """As it is declared; between its labels and its families are parts of a name, which we write out."""
        metric = METRICS[name]
        return kind(metric.name, metric.meaning, metric.label_names, "", "", "", self._families, **options)

    def look(self) -> None:
        """Take the survey that the next `render` shows. In the event loop."""
        self._collector.survey = self._survey()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition, and its content type, for an Accept header. In any thread."""
        encode, content_type = choose_encoder(accept)
        return encode(self._families), content_type

    # Workflows and sessions

    def workflow_submitted(self, workflow_id: str, name: str) -> None:
        self._count("laban_workflows_submitted_total", self._workflow(name))
        self._await_end(name)

    def workflow_restored(self, workflow_id: str, name: str) -> None:
        self._count("laban_workflows_restored_total")
        self._await_end(name)

    def _await_end(self, name: str) -> None:
        name = self._workflow(name)
        for outcome in OUTCOMES:  # so that the first failure is a rise from 0, and no new series
            self._count("laban_workflows_ended_total", name, outcome, amount=0)

    def step_ended(self, workflow_id: str, workflow: str, kind: str, result: StepResult) -> None:
        workflow = self._workflow(workflow)
        self._count("laban_steps_ended_total", workflow, result.state)
        if result.error is not None and result.state == "failed":
            self._count("laban_errors_total", "step", result.error.status)
        if result.model:  # it generates
            self._used(result.total, result.fidelity, result.model)
        if result.state != "succeeded":
            return
        self._observe("laban_step_seconds", result.wall_ms / 1000.0, workflow, kind)
        if kind == "generate":
            self._made(result, result.model)

    def workflow_ended(self, record: WorkflowRecord) -> None:
        workflow = self._workflow(record.name)
        self._count("laban_workflows_ended_total", workflow, record.state)
        self._observe("laban_workflow_seconds", record.wall_ms / 1000.0, workflow)
        if record.error is not None:
            self._count("laban_errors_total", "workflow", record.error.status)

    def message_made(self, record: MessageRecord, model: str) -> None:
        self._made(record, model)
        self._used(record, record.fidelity, model)

    def _made(self, call: StepResult | MessageRecord, model: str) -> None:
        fidelity = call.fidelity
        self._observe("laban_time_to_first_token_seconds", call.ttft_ms / 1000.0, fidelity, model=model)
        self._observe("laban_call_seconds", call.wall_ms / 1000.0, fidelity, model=model)

    def _used(self, counts: Counts, fidelity: str, model: str) -> None:
        self._count("laban_read_tokens_total", fidelity, amount=counts.tokens_read, model=model)
        self._count("laban_reused_tokens_total", fidelity, amount=counts.tokens_reused, model=model)
        self._count("laban_loaded_tokens_total", fidelity, amount=counts.tokens_loaded, model=model)
        self._count("laban_encoded_tokens_total", fidelity, amount=counts.tokens_encoded, model=model)
        self._count("laban_generated_tokens_total", fidelity, amount=counts.tokens_generated, model=model)

    # Calls

    def call_routed(self, policy: str, worker_id: str, decided_s: float, model: str) -> None:
        self._count("laban_routing_decisions_total", policy, self._worker(worker_id), model=model)
        self._observe("laban_routing_seconds", decided_s, policy, model=model)

    def policy_failed(self) -> None:
        self._count("laban_routing_policy_failures_total")

    def call_admitted(self, waited_s: float, model: str) -> None:
        self._observe("laban_call_queue_seconds", waited_s, model=model)

    def call_ended(self, worker_id: str, code: str, model: str) -> None:
        self._count("laban_calls_ended_total", self._worker(worker_id), code, model=model)
        if code != "OK":
            self._count("laban_errors_total", "call", code, model=model)

    def call_failed(self, first_token_s: float, model: str) -> None:
        self._observe("laban_failed_first_token_seconds", first_token_s, model=model)

    def call_requeued(self) -> None:
        self._count("laban_calls_requeued_total")

    def worker_lost(self) -> None:
        self._count("laban_worker_losses_total")

    def directory_confirmed(self, lag_s: float) -> None:
        self._observe("laban_directory_lag_seconds", lag_s)

    # Audits in service

    def audit_ended(self, outcome: str) -> None:
        self._count("laban_audits_total", outcome)

    def audit_compared(self, workflow: str, fidelity: str, tally: Tally) -> None:
        workflow = self._workflow(workflow)
        self._observe("laban_audit_divergence_nats", tally.kl_mean, workflow, fidelity)
        self._count("laban_audited_tokens_total", workflow, "agrees", amount=tally.num_agreed)
        self._count("laban_audited_tokens_total", workflow, "differs", amount=tally.num_tokens - tally.num_agreed)

    def audit_spent(self, worker_id: str, seconds: float) -> None:
        self._count("laban_audit_seconds_total", self._worker(worker_id), amount=seconds)

    # Requests

    def request_begun(self, method: str) -> None:
        self._open.labels(self._model, method).inc()

    def request_ended(self, method: str, code: str, seconds: float | None) -> None:
        self._open.labels(self._model, method).dec()
        self._count("laban_grpc_requests_total", method, code)
        if seconds is not None:
            self._observe("laban_grpc_request_seconds", seconds, method)
        if code not in ("OK", "CANCELLED"):
            self._count("laban_errors_total", "request", code)

    def refused(self, reason: str) -> None:
        self._count("laban_refused_requests_total", reason)

    def loop_lagged(self, seconds: float) -> None:
        self._observe("laban_event_loop_lag_seconds", max(0.0, seconds))

    def _count(self, name: str, *labels: str, amount: float = 1, model: str = "") -> None:
        """`model` "" is the default one."""
        self._counters[name].labels(model or self._model, *labels).inc(amount)

    def _observe(self, name: str, value: float, *labels: str, model: str = "") -> None:
        self._histograms[name].labels(model or self._model, *labels).observe(value)
