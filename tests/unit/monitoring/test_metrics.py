"""What is exported is what is declared, and counts what happened."""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from executor_workflows import DEBATE, asynchronous
from flaky_calls import FLAT, Flaky, assert_accounted
from journal_rig import MemoryStore, server
from metered_rig import metered_rig
from prometheus_client.parser import text_string_to_metric_families

from laban.actors.errors import InvalidInput, LabanError
from laban.actors.tallies import BOUNDS, Copies, Spread, WorkerTallies
from laban.cluster.client_async import AsyncClient
from laban.cluster.instruments import Bounded, Instruments
from laban.cluster.metrics import LABELS, MAX_VALUES, METRICS, OTHER, series_names

FAILS = """
version: 1
name: fails
messages: {task: "What?"}
steps: [{step: only, read: [task], prefill: "FAIL"}]
"""


def test_declarations_are_sound() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"laban_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.bounds) == (metric.kind == "histogram"), metric.name
        assert metric.meaning.endswith(".")
        assert set(metric.labels) <= LABELS.keys()
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert not re.search(r"_(ms|kb|mb|gb|minutes|percent)(_|$)", metric.name)
    assert LABELS.keys() == {"model"}.union(*(metric.labels for metric in METRICS.values()))


@asynchronous
async def test_everything_declared_is_exported_and_nothing_else() -> None:
    async with metered_rig() as rig:
        [item async for item in rig.client.run(DEBATE)]
        with pytest.raises(LabanError):
            await rig.client.get("wf-none")
        rig.instruments.loop_lagged(0.1)
        rig.instruments.look()
        body, kind = rig.instruments.render("text/plain")
        assert kind.startswith("text/plain")
        told = {family.name: family for family in text_string_to_metric_families(body.decode())}
        families = {name: family for name, family in told.items() if name.startswith("laban_")}
        declared = {metric.name.removesuffix("_total"): metric for metric in METRICS.values()}
        assert families.keys() == declared.keys()
        for name, family in families.items():
            metric = declared[name]
            assert (family.type, family.documentation) == (metric.kind, metric.meaning)
            for sample in family.samples:
                assert sample.name in series_names(metric)
                assert set(sample.labels) - {"le"} == set(metric.label_names)
                assert sample.labels["model"] == "scripted"
        assert "_created" not in body.decode()


@asynchronous
async def test_a_run_is_counted() -> None:
    async with metered_rig(2) as rig:
        events = [item async for item in rig.client.run(DEBATE)]
        record = await rig.client.get(events[0].workflow_id)
        failed = [item async for item in rig.client.run(FAILS)]
        assert failed[-1].workflow_state == "failed"
        steps = record.steps
        assert rig.value("laban_workflows_submitted_total", workflow="debate") == 1
        assert rig.value("laban_workflows_ended_total", workflow="debate", outcome="succeeded") == 1
        assert rig.value("laban_workflows_ended_total", workflow="fails", outcome="failed") == 1
        assert rig.value("laban_steps_ended_total", workflow="debate", outcome="succeeded") == len(steps) == 6
        assert rig.value("laban_step_seconds_count", kind="generate") == 6
        assert rig.value("laban_time_to_first_token_seconds_count", fidelity="exact") == 6
        for name in ("read", "reused", "encoded", "generated"):
            total = sum(getattr(step, f"tokens_{name}") for step in steps)
            assert rig.value(f"laban_{name}_tokens_total") == total
        assert rig.value("laban_calls_ended_total", code="OK") == 6
        assert rig.value("laban_calls_ended_total", code="RESOURCE_EXHAUSTED") == 1
        for kind in ("call", "step", "workflow"):
            assert rig.value("laban_errors_total", kind=kind, code="RESOURCE_EXHAUSTED") == 1
        assert rig.value("laban_routing_decisions_total", policy="cost") == 7
        assert rig.value("laban_workers", state="up") == 2
        assert rig.value("laban_steps") == rig.value("laban_workflows") == rig.value("laban_queue_calls") == 0
        assert rig.value("laban_grpc_requests_total", method="Workflows/Run", code="OK") == 2
        assert rig.value("laban_grpc_request_seconds_count", method="Workflows/Run") == 0
        assert rig.value("laban_grpc_request_seconds_count", method="Workflows/Get") == 1
        assert rig.value("laban_grpc_open_requests") == 0


@asynchronous
async def test_tokens_of_attempts_in_vain_are_counted() -> None:
    with Flaky(random.randrange(2**32), unfit=0.5).in_force() as flaky:
        async with metered_rig(2) as rig:
            items = [item async for item in rig.client.run(FLAT)]
            record = await rig.client.get(items[0].workflow_id)
            assert_accounted(record, flaky)
            for name in ("read", "reused", "loaded", "encoded", "generated"):
                told = sum(getattr(step.total, f"tokens_{name}") for step in record.steps)
                assert rig.value(f"laban_{name}_tokens_total") == told
            ended = [step for step in record.steps if step.state == "succeeded"]
            assert rig.value("laban_time_to_first_token_seconds_count") == len(ended)


@asynchronous
async def test_requests_are_counted_by_their_status_and_open_watches_are_seen() -> None:
    async with metered_rig() as rig:
        rig.workers[0].paused = True
        client: AsyncClient = rig.client
        record = await client.submit(DEBATE)
        watch = client.watch(record.workflow_id)
        await anext(watch)
        assert rig.value("laban_grpc_open_requests", method="Workflows/Watch") == 1
        assert rig.value("laban_steps", state="ready") == 3
        assert rig.value("laban_queue_calls", place="worker") == 3
        assert rig.value("laban_queue_oldest_seconds", place="worker") > 0
        with pytest.raises(InvalidInput):
            await client.list(page_size=-1)
        assert rig.value("laban_grpc_requests_total", method="Workflows/List", code="INVALID_ARGUMENT") == 1
        assert rig.value("laban_errors_total", kind="request", code="INVALID_ARGUMENT") == 1
        await client.cancel(record.workflow_id)
        [item async for item in watch]
        assert rig.value("laban_grpc_open_requests") == 0
        assert rig.value("laban_steps_ended_total", outcome="cancelled") == 6


@asynchronous
async def test_a_session_is_counted_and_a_worker_that_dies() -> None:
    async with metered_rig(2) as rig:
        async with await rig.client.open_session() as session:
            await session.prefill("hello")
            assert rig.value("laban_sessions") == 1
        assert rig.value("laban_time_to_first_token_seconds_count") == 1
        rig.workers[0].kill()
        while rig.value("laban_worker_losses_total") == 0:
            await asyncio.sleep(0.001)
        assert rig.value("laban_workers", state="lost") == 0


@asynchronous
async def test_what_workers_tally_is_shown() -> None:
    async with metered_rig() as rig:
        engine = rig.workers[0].engine
        bounds = BOUNDS["inter_token_s"]
        spread = Spread((1, 2, *[0] * (len(bounds) - 2), 3), 9.5)
        tallies = WorkerTallies(inter_token_s=spread, tokens_decoded=5, copies_cma=Copies(2, 1, 30, 0.5))
        engine.tallies = tallies
        [item async for item in rig.client.run(DEBATE)]
        buckets = {labels["le"]: v for labels, v in rig.samples()["laban_inter_token_seconds_bucket"]}
        assert (buckets[str(bounds[0])], buckets[str(bounds[1])], buckets["+Inf"]) == (1, 3, 6)
        assert rig.value("laban_inter_token_seconds_sum") == 9.5
        assert rig.value("laban_transfers_failed_total", link="cma") == 1
        assert rig.value("laban_computed_tokens_total", phase="decode") == 5


def test_labels_that_users_choose_are_bounded() -> None:
    bounded = Bounded()
    values = {bounded(f"w{number}") for number in range(3 * MAX_VALUES)}
    assert len(values) == MAX_VALUES + 1
    assert OTHER in values
    assert bounded("w0") == "w0"


@asynchronous
async def test_health_says_what_is_wrong() -> None:
    async with metered_rig() as rig:
        assert await rig.ask("GET /healthz HTTP/1.1") == (200, "alive\n")
        assert await rig.ask("GET /readyz HTTP/1.1\r\nHost: x") == (200, "ready\n")
        rig.not_ready = "no worker is up"
        assert await rig.ask("GET /readyz HTTP/1.1") == (503, "no worker is up\n")
        status, body = await rig.ask("GET /metrics?x=1 HTTP/1.1\r\nAccept: text/plain")
        assert status == 200
        assert "laban_ready" in body
        status, body = await rig.ask("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0")
        assert body.endswith("# EOF\n")
        assert (await rig.ask("HEAD /metrics HTTP/1.1"))[1] == ""
        assert (await rig.ask("POST /metrics HTTP/1.1"))[0] == 405
        assert (await rig.ask("GET /else HTTP/1.1"))[0] == 404


@asynchronous
async def test_calls_that_fail_are_timed_apart_and_the_process_is_there() -> None:
    async with metered_rig() as rig:
        with pytest.raises(LabanError):
            async with await rig.client.open_session() as session:
                await session.generate(max_tokens=3, prefill="FAIL")
        assert rig.value("laban_failed_first_token_seconds_count") == 1
        assert rig.value("laban_time_to_first_token_seconds_count") == 0
        assert rig.value("process_resident_memory_bytes") > 1e6
        assert rig.value("python_gc_collections_total") > 0


@asynchronous
async def test_what_is_restored_is_not_submitted_again() -> None:
    meter = Instruments("scripted", lambda: NotImplemented)  # type: ignore[arg-type, return-value]
    flow = """
version: 1
name: asking
messages: {task: "What?"}
steps: [{step: human, read: [task], external: {tool: ask}}]
"""
    store = MemoryStore()
    async with server(store, ahead=True, meter=meter) as before:
        record = await before.submit(flow)
    async with server(MemoryStore(store.writes), ahead=True, meter=meter) as after:
        after.handle(["ask"])
        await after.events(record.workflow_id)
    text, _ = meter.render("text/plain")
    found = text.decode()
    assert 'laban_workflows_submitted_total{model="scripted",workflow="asking"} 1.0' in found
    assert 'laban_workflows_restored_total{model="scripted"} 1.0' in found
