"""Traces reach a collector over the wire: what is part of what, who is sampled, and never what a message says."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Iterator

import pytest
from executor_workflows import asynchronous
from journal_rig import MemoryStore, server
from metered_rig import metered_rig
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from otlp_collector import Collector, Span, collecting

from laban.actors.calls import Call, CallFinished, CallPhases, Sampling
from laban.actors.errors import Unavailable
from laban.actors.logs import LogSettings, set_up_logs
from laban.cluster.client import Client
from laban.cluster.config import resolve
from laban.cluster.host import _traces
from laban.cluster.slots import Order, Ticket
from laban.cluster.traces import NO_TRACES
from laban.cluster.tracing import exporting
from laban.cluster.waiter import Waiter
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec

SECRET = "xyzzy plugh"
FLOW = f"""
version: 1
name: telling
inputs: {{word: {{type: string}}}}
messages: {{task: "{{{{ word }}}}"}}
agents: {{ann: "{SECRET}"}}
steps:
  - {{step: good, agent: ann, read: [task], sampling: {{forced_text: "{SECRET}", max_tokens: 50}}}}
  - {{step: bad, agent: ann, read: [task, good], prefill: "FAIL {SECRET}", retries: {{max: 1}}}}
"""
HUMAN = """
version: 1
name: asking
messages: {task: "What?"}
steps:
  - {step: answer, read: [task], sampling: {max_tokens: 4}}
  - {step: human, read: [answer], external: {tool: ask}}
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was logged since the last call."""
    root, ours = logging.getLogger(), logging.getLogger("laban")
    before = root.handlers[:], root.level, ours.level
    yield lambda: capsys.readouterr().err
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


def only(spans: list[Span]) -> Span:
    (found,) = spans
    return found


@asynchronous
async def test_from_the_client_to_the_worker(collector: Collector, out: Callable[[], str]) -> None:
    traces = exporting(collector.endpoint)
    set_up_logs(LogSettings("json", "debug"), trace_of=traces.trace_id)
    async with metered_rig(traces=traces) as rig:
        with TracerProvider().get_tracer("of-the-client").start_as_current_span("outside") as outside:
            record = await rig.client.submit(FLOW, {"word": SECRET})
            trace_id = trace.format_trace_id(outside.get_span_context().trace_id)
        async with asyncio.timeout(20):
            assert (await rig.client.wait(record.workflow_id)).state == "failed"
    await asyncio.to_thread(traces.close)

    submitted = only(collector.named("laban.v1.Workflows/Submit"))
    assert submitted.trace_id == trace_id
    assert submitted.parent_id == trace.format_span_id(outside.get_span_context().span_id)
    assert submitted.attributes["rpc.response.status_code"] == "OK"
    assert submitted.resource["service.name"] == "laban"
    workflow = only(collector.children(submitted))
    assert (workflow.name, workflow.attributes["laban.workflow.id"]) == ("workflow", record.workflow_id)
    assert workflow.is_error
    attempts = collector.children(workflow)
    assert [(each.attributes["laban.step.address"], each.attributes["laban.step.attempt"]) for each in attempts] == [
        ("good", 1),
        ("bad", 1),
        ("bad", 2),
    ]
    assert [each.is_error for each in attempts] == [False, True, True]
    for attempt in attempts:
        call = only(collector.children(attempt))
        assert workflow.begin_ns <= attempt.begin_ns <= call.begin_ns <= call.end_ns
        phases = [each.name for each in collector.children(call)]
        failed = ["queue", "route"]
        assert phases == (failed if attempt.is_error else [*failed, "queue", "prefill", "decode"])
        assert call.attributes["laban.worker"] == "w0"
    assert {span.trace_id for span in (submitted, workflow, *attempts)} == {trace_id}

    assert SECRET.encode() not in b"".join(collector.raw)
    lines = [json.loads(line) for line in out().splitlines()]
    of_workflow = [line for line in lines if line.get("workflow") == record.workflow_id]
    assert len(of_workflow) >= 4
    assert {line["trace"] for line in of_workflow} == {trace_id}


@asynchronous
async def test_a_session_and_a_stream(collector: Collector) -> None:
    traces = exporting(collector.endpoint)
    async with metered_rig(traces=traces) as rig:

        def talk() -> None:
            with Client(rig.client_address) as client, client.open_session() as session:
                session.generate(max_tokens=3)

        await asyncio.to_thread(talk)
    await asyncio.to_thread(traces.close)
    decoded = only(collector.named("laban.v1.Choreography/Decode"))
    call = only(collector.children(decoded))
    assert decoded.parent_id == ""  # nobody traces at the client
    assert [each.name for each in collector.children(call)][-2:] == ["prefill", "decode"]


@asynchronous
async def test_who_is_not_sampled_at_the_client_is_not_here(collector: Collector, out: Callable[[], str]) -> None:
    traces = exporting(collector.endpoint)
    set_up_logs(LogSettings("text", "info"), trace_of=traces.trace_id)
    async with metered_rig(traces=traces) as rig:
        with TracerProvider(sampler=ALWAYS_OFF).get_tracer("of-the-client").start_as_current_span("outside") as outside:
            record = await rig.client.submit(FLOW, {"word": "w"})
            trace_id = trace.format_trace_id(outside.get_span_context().trace_id)
        await rig.client.wait(record.workflow_id)
    await asyncio.to_thread(traces.close)
    assert trace_id not in {span.trace_id for span in collector.spans}
    assert not collector.named("workflow")
    assert f" workflow={record.workflow_id} trace={trace_id}" in out()  # the others along the way may have sampled it


@asynchronous
async def test_samplers_are_the_standard_ones(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    traces = exporting(collector.endpoint)
    async with metered_rig(traces=traces) as rig:
        await rig.client.status()
        with TracerProvider(sampler=ALWAYS_ON).get_tracer("of-the-client").start_as_current_span("outside"):
            await rig.client.status()
    await asyncio.to_thread(traces.close)
    assert [span.name for span in collector.spans] == ["laban.v1.Cluster/GetStatus"]  # the one whose client sampled it


@asynchronous
async def test_one_that_is_restored_has_a_link_to_where_it_was_submitted(collector: Collector) -> None:
    store = MemoryStore()
    first = exporting(collector.endpoint)
    async with server(store, traces=first) as before:
        request = first.request_begun("Workflows/Submit", ())
        record = await before.submit(HUMAN)
        first.request_ended(request, "OK")
        async with asyncio.timeout(20):
            async for item in before.executor.watch(record.workflow_id):
                if getattr(item, "address", "") == "human":
                    break
    await asyncio.to_thread(first.close)
    again = exporting(collector.endpoint)
    async with server(MemoryStore(store.writes), traces=again) as after:
        after.handle(["ask"])
        await after.events(record.workflow_id)
    await asyncio.to_thread(again.close)

    submitted = only(collector.named("laban.v1.Workflows/Submit"))
    old, new = collector.named("workflow")
    assert (old.trace_id, old.is_error) == (submitted.trace_id, True)
    assert (new.trace_id != old.trace_id, new.links, new.is_error) == (True, [submitted.trace_id], False)
    assert new.begin_ns >= old.end_ns
    assert [each.attributes["laban.step.address"] for each in collector.children(new)] == ["human"]


@asynchronous
async def test_one_that_goes_to_another_ends_here_and_leaves_nothing(collector: Collector) -> None:
    traces = exporting(collector.endpoint)
    async with server(MemoryStore(), traces=traces) as run:
        record = await run.submit(HUMAN)
        async with asyncio.timeout(20):
            async for item in run.executor.watch(record.workflow_id):
                if getattr(item, "address", "") == "human":
                    break
        run.executor.let_go(Unavailable("others have it"))
        assert not traces._workflows
        assert not traces._attempts
    await asyncio.to_thread(traces.close)
    assert only(collector.named("workflow")).is_error
    human = [each for each in collector.named("step") if each.attributes["laban.step.address"] == "human"]
    assert only(human).is_error


def test_phases_are_those_that_the_worker_reports(collector: Collector) -> None:
    traces = exporting(collector.endpoint)
    call = Call("s-1/m1", "model", EMPTY_VIEW, 0, (1,), (), Sampling(max_tokens=3))
    ticket = Ticket(Order(call, Waiter("m1"), {}), 1, ordered_at=100.0, attempt=1, waited_ms=20.0, decided_s=0.01)
    spec = EncodingSpec("id", "model", (1,), 0, EMPTY_VIEW, exact=True)
    phases = CallPhases(admitted_ms=30, load_began_ms=10, load_ended_ms=40, num_iterations=7)
    end = CallFinished(
        "s-1/m1#1", "length", spec, (2, 3, 4), SECRET, 9, 5, 4, 50.0, 90.0, tokens_generated=3, phases=phases
    )
    traces.call_ended(ticket, "w0", 100.125, end)
    traces.close()
    told = only(collector.named("call"))
    found = [
        (each.name, round((each.begin_ns - told.begin_ns) / 1e6), round((each.end_ns - told.begin_ns) / 1e6))
        for each in collector.children(told)
    ]
    assert found == [
        ("queue", 0, 20),
        ("route", 20, 30),
        ("queue", 30, 60),
        ("load", 40, 70),
        ("prefill", 60, 80),
        ("decode", 80, 120),
    ]
    assert only(collector.named("decode")).attributes == {"laban.iterations": 7, "laban.tokens.generated": 3}
    assert told.end_ns - told.begin_ns == pytest.approx(125e6, abs=1)


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    traces = exporting(f"http://127.0.0.1:{port}")

    async def run() -> str:
        async with metered_rig(traces=traces) as rig:
            record = await rig.client.submit(FLOW, {"word": "w"})
            return (await rig.client.wait(record.workflow_id)).state

    assert asyncio.run(run()) == "failed"
    traces.close()


def test_nobody_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert _traces(resolve(environment={}).config.tracing.endpoint, {}) is NO_TRACES
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert _traces(None, {}) is NO_TRACES
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    found = _traces(None, {"OTEL_SERVICE_NAME": "ours"})
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")  # so that it is taken away again
    assert found is not NO_TRACES
    found.close()
