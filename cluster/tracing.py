"""OpenTelemetry traces: a span for each request, workflow, attempt of a step, call, and phase of a call.

No span holds a message's text, an input or an error's message, which may quote one. Spans leave in a thread of their
own, over OTLP; when the collector is away or slow they are dropped, and nobody waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from threading import Thread

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from laban.actors.calls import CallFinished
from laban.cluster.board import Board
from laban.cluster.records import TERMINAL_WORKFLOW, Event
from laban.cluster.slots import Ticket
from laban.cluster.traces import Metadata, Traces

SERVICE = "laban"
FLUSH_S = 2.0
MAX_ENDED = 1_000
NANOSECONDS = 1_000_000_000
CARRIED = ("traceparent", "tracestate")
_W3C = TraceContextTextMapPropagator()


def exporting(endpoint: str | None) -> OtelTraces:
    """Over OTLP to `endpoint`, or where OTEL_EXPORTER_OTLP_ENDPOINT says; the other OTEL_ variables hold too."""
    return OtelTraces(OTLPSpanExporter(endpoint=endpoint))


class OtelTraces(Traces):
    """Of those that the sampler takes."""

    def __init__(self, exporter: SpanExporter) -> None:
        # Not the process's global provider: what else is in this process traces for others.
        ours = Resource.create({"service.name": SERVICE, "service.version": version("laban")})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._exporter = exporter
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._workflows: dict[str, Span] = {}
        self._ended: deque[str] = deque()  # of these, those that have ended: more may be logged of them
        self._attempts: dict[str, tuple[int, Span]] = {}  # by workflow and address, as a call's key

    # Requests

    def request_begun(self, method: str, metadata: Metadata) -> object:
        carrier = {key: value for key, value in metadata if key in CARRIED and isinstance(value, str)}
        service, _, name = method.partition("/")
        said = {"rpc.system": "grpc", "rpc.service": f"laban.v1.{service}", "rpc.method": name}
        span = self._tracer.start_span(f"laban.v1.{method}", _W3C.extract(carrier, Context()), SpanKind.SERVER, said)
        contexts.attach(trace.set_span_in_context(span))  # of this request's task, which ends with it
        return span

    def request_ended(self, request: object, code: str) -> None:
        if isinstance(request, Span):
            request.set_attribute("rpc.response.status_code", code)
            _end(request, "" if code in ("OK", "CANCELLED") else code)

    def here(self) -> str:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")

    # Workflows

    def follow(self, board: Board, origin: str, *, restored: bool = False) -> None:
        found = _W3C.extract({"traceparent": origin}, Context())
        there = trace.get_current_span(found).get_span_context()
        said = {"laban.workflow.id": board.workflow_id, "laban.workflow.name": board.name}
        if restored:
            said["laban.workflow.restored"] = "true"
        self._workflows[board.workflow_id] = self._tracer.start_span(
            "workflow",
            Context() if restored else found,
            attributes=said,
            links=[Link(there)] if restored and there.is_valid else (),
            start_time=None if restored else _ns(board.record(with_steps=False).created_at),
        )
        board.feed.on_event = partial(self._happened, board)

    def _happened(self, board: Board, event: Event) -> None:
        workflow_id, at_ns = board.workflow_id, _ns(event.at)
        if event.kind == "step_state":
            self._attempted(board, event, at_ns)
        elif event.result is not None:
            result = event.result
            found = self._attempts.pop(f"{workflow_id}/{result.address}", None)
            if found is not None:
                found[1].set_attribute("laban.step.state", result.state)
                _end(found[1], "" if result.error is None else result.error.status, at_ns)
        elif event.workflow_state in TERMINAL_WORKFLOW:
            span = self._workflows[workflow_id]
            span.set_attribute("laban.workflow.state", str(event.workflow_state))
            _end(span, "" if event.error is None else event.error.status, at_ns)
            board.feed.on_event = None
            self._ended.append(workflow_id)
            if len(self._ended) > MAX_ENDED:
                self._workflows.pop(self._ended.popleft(), None)
        elif event.held:
            self._workflows[workflow_id].add_event("held", timestamp=at_ns)

    def _attempted(self, board: Board, event: Event, at_ns: int) -> None:
        key = f"{board.workflow_id}/{event.address}"
        number, span = self._attempts.get(key, (0, trace.INVALID_SPAN))
        if number != event.attempt:
            _end(span, "ABORTED", at_ns)  # another attempt takes its place
            step = board.steps[event.address]
            said: dict[str, str | int] = {"laban.step.address": event.address, "laban.step.attempt": event.attempt}
            said["laban.step.name"] = step.step
            if step.tool:
                said["laban.step.tool"] = step.tool
            parent = trace.set_span_in_context(self._workflows[board.workflow_id], Context())
            span = self._tracer.start_span("step", parent, attributes=said, start_time=at_ns)
            self._attempts[key] = event.attempt, span
        if event.step_state == "running":
            span.set_attribute("laban.step.worker", event.worker)
            span.add_event("running", timestamp=at_ns)

    def let_go(self, workflow_id: str) -> None:
        for key in [key for key in self._attempts if key.startswith(f"{workflow_id}/")]:
            _end(self._attempts.pop(key)[1], "UNAVAILABLE")
        span = self._workflows.pop(workflow_id, None)
        if span is not None and span.is_recording():  # it may have ended: more is logged of it for a time
            _end(span, "UNAVAILABLE")

    # Calls

    def call_ended(self, ticket: Ticket, worker_id: str, ended_at: float, end: CallFinished | str) -> None:
        found = self._attempts.get(ticket.order.key)
        origin = _W3C.extract({"traceparent": ticket.origin}, Context())
        parent = origin if found is None else trace.set_span_in_context(found[1], Context())
        ended_ns = time.time_ns()
        ordered_ns = ended_ns - _ns(ended_at - ticket.ordered_at)
        sent_ns = ordered_ns + _ms(ticket.waited_ms)
        decode = ticket.order.call.sampling is not None
        said = {"laban.call.kind": "decode" if decode else "prefill", "laban.worker": worker_id}
        span = self._tracer.start_span("call", parent, attributes=said, start_time=ordered_ns)
        if span.is_recording():
            inside = trace.set_span_in_context(span, Context())
            decided_ns = sent_ns + _ns(ticket.decided_s)
            self._phase("queue", inside, ordered_ns, sent_ns, {"laban.queue.place": "gateway"})
            self._phase("route", inside, sent_ns, decided_ns)
            if isinstance(end, CallFinished):
                self._at_worker(inside, decided_ns, end, decode=decode)
                span.set_attributes(
                    {
                        "laban.tokens.read": end.tokens_read,
                        "laban.tokens.reused": end.tokens_reused,
                        "laban.tokens.loaded": end.tokens_loaded,
                        "laban.tokens.encoded": end.tokens_encoded,
                        "laban.tokens.generated": end.tokens_generated,
                        "laban.finish_reason": end.finish_reason,
                    }
                )
        _end(span, end if isinstance(end, str) else "", ended_ns)

    def _at_worker(self, inside: Context, came_ns: int, end: CallFinished, *, decode: bool) -> None:
        """Phases that it reports are in milliseconds since the call came; the way there is taken to be no time."""
        phases = end.phases
        admitted_ns, first_ns = came_ns + _ms(phases.admitted_ms), came_ns + _ms(end.ttft_ms)
        began_ns, loaded_ns = came_ns + _ms(phases.load_began_ms), came_ns + _ms(phases.load_ended_ms)
        self._phase("queue", inside, came_ns, admitted_ns, {"laban.queue.place": "worker"})
        if phases.load_ended_ms:
            self._phase("load", inside, began_ns, loaded_ns, {"laban.tokens.loaded": end.tokens_loaded})
        self._phase("prefill", inside, admitted_ns, first_ns, {"laban.tokens.encoded": end.tokens_encoded})
        if decode:
            said = {"laban.iterations": phases.num_iterations, "laban.tokens.generated": end.tokens_generated}
            self._phase("decode", inside, first_ns, came_ns + _ms(end.wall_ms), said)

    def _phase(
        self, name: str, inside: Context, began_ns: int, ended_ns: int, said: Mapping[str, str | int] | None = None
    ) -> None:
        span = self._tracer.start_span(name, inside, attributes=said, start_time=began_ns)
        span.end(max(began_ns, ended_ns))

    def trace_id(self, workflow_id: str = "") -> str:
        span = self._workflows.get(workflow_id)
        if span is None:
            span = trace.get_current_span()
            if isinstance(span, ReadableSpan) and span.end_time is not None:
                return ""  # of a request that is over, and that a task was begun in
        context = span.get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else ""

    def close(self) -> None:
        for span in [*(span for _, span in self._attempts.values()), *self._workflows.values()]:
            if span.is_recording():
                _end(span, "UNAVAILABLE")  # another process may go on with it
        flush = Thread(target=self._provider.force_flush, daemon=True)
        flush.start()
        flush.join(FLUSH_S)
        if flush.is_alive():  # the collector is away: what is left is lost, and nobody waits for all the retries
            self._exporter.shutdown()
        self._provider.shutdown()


def _end(span: Span, error: str, at_ns: int | None = None) -> None:
    """`error` is the name of a status, "" if all went well; a message may quote what a caller wrote."""
    if error:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR, error)
    span.end(at_ns)


def _ns(seconds: float) -> int:
    return int(seconds * NANOSECONDS)


def _ms(milliseconds: float) -> int:
    return _ns(milliseconds / 1000.0)
