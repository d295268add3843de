"""The gateway over a scripted executor: a real gRPC server on a loopback port."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from api_fakes import EVENTS, RECORD, STATUS, YAML, FakeExecutor, FakeSessions, error_of, eventually, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput, LabanError, NotFound, Unavailable
from laban.cluster.client import AsyncClient
from laban.cluster.gateway import SERVICES, Gateway, GatewayLimits
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.proto import laban_pb2 as pb
from laban.proto import laban_pb2_grpc as pb_grpc


def test_submit_hands_over_what_was_asked() -> None:
    async def main() -> None:
        async with serving() as served:
            record = await served.client.submit(
                YAML,
                {"who": "Ann", "n": 3, "deep": [1, {"a": 0.5}]},
                fidelity="direct",
                seed=7,
                overrides={"answer.max_tokens": "12", ("answer[bob,2]", "temperature"): 0.5},
                idempotency_key="k",
            )
            assert record == RECORD
            [asked] = served.executor.submitted
            assert asked.workflow.name == "greet"
            assert asked.inputs == {"who": "Ann", "n": 3, "deep": [1, {"a": 0.5}]}
            assert (asked.overrides.fidelity, asked.overrides.seed) == ("direct", 7)
            assert asked.overrides.set == {("answer", "max_tokens"): 12, ("answer[bob,2]", "temperature"): 0.5}
            assert asked.idempotency_key == "k"

    asyncio.run(main())


def test_the_structured_form_is_the_same_workflow() -> None:
    document = {
        "version": 1,
        "name": "greet",
        "inputs": {"who": {"type": "string"}},
        "messages": {"task": "Greet {{ who }}."},
        "steps": [{"step": "answer", "read": ["task"]}],
        "outputs": {"reply": "answer"},
    }

    async def main() -> None:
        async with serving() as served:
            await served.client.submit(YAML, {"who": "A"}, idempotency_key="same")
            await served.client.submit(document, {"who": "A"}, idempotency_key="same")
            first, second = (asked.workflow for asked in served.executor.submitted)
            assert first.model_dump() == second.model_dump()

    asyncio.run(main())


def test_run_and_watch_stream_events_and_chunks() -> None:
    async def main() -> None:
        async with serving() as served:
            assert [item async for item in served.client.run(YAML, {"who": "A"})] == list(EVENTS)
            assert [item async for item in served.client.watch("wf-1", 3)] == [EVENTS[2], EVENTS[4]]
            assert served.executor.calls[-1] == ("watch", "wf-1", 3)
            assert await served.client.wait("wf-1") == RECORD
            assert served.executor.cancelled == []

    asyncio.run(main())


def test_the_other_methods() -> None:
    async def main() -> None:
        async with serving() as served:
            client, executor = served.client, served.executor
            assert await client.get("wf-1") == RECORD
            assert await client.cancel("wf-1") == RECORD
            assert executor.cancelled == ["wf-1"]
            page, token = await client.list(page_size=5, page_token="t", states=["running", "failed"])
            assert (page, token) == ([RECORD], "7")
            assert executor.calls[-1] == (
                "list", {"page_size": 5, "page_token": "t", "states": ("running", "failed")}
            )  # fmt: skip
            await client.complete_step("wf-1", "human", "text", idempotency_key="k")
            await client.fail_step("wf-1", "human", "why")
            assert executor.calls[-2:] == [
                ("complete", "wf-1", "human", "text", "k"),
                ("fail", "wf-1", "human", "why", ""),
            ]
            assert await client.status() == STATUS

    asyncio.run(main())


def test_errors_of_the_executor_reach_the_caller() -> None:
    async def main() -> None:
        async with serving() as served:
            error = await error_of(served.client.get("wf-2"))
            assert type(error) is NotFound
            assert (error.field, error.value) == ("workflow_id", "wf-2")
            assert type(await error_of(served.client.watch("wf-2"))) is NotFound
            await served.client.submit(YAML, {"who": "A"}, idempotency_key="k")
            error = await error_of(served.client.submit(YAML, {"who": "B"}, idempotency_key="k"))
            assert error.status == "ALREADY_EXISTS"

    asyncio.run(main())


def test_a_bad_document_names_line_and_column() -> None:
    async def main() -> None:
        async with serving() as served:
            error = await error_of(served.client.submit(YAML.replace("read: [task]", "read: [tusk]")))
            assert isinstance(error, WorkflowErrors)
            [found] = [item for item in error.diagnostics if item.severity == "error"]
            assert (found.line, found.path) == (9, "steps[0].read[0]")
            error = await error_of(served.client.submit("version: 1\nname: \xff".encode("latin-1")))
            assert error.status == "INVALID_ARGUMENT"
            assert "UTF-8" in str(error)
            error = await error_of(served.client.submit(YAML + "fidelity: corrected\n"))
            assert error.status == "UNIMPLEMENTED"
            assert served.executor.submitted == []
            await served.client.submit(YAML)  # and the next one runs

    asyncio.run(main())


def submit(**fields: object) -> pb.SubmitRequest:
    return pb.SubmitRequest(yaml=YAML.encode(), **fields)


def sampled(**fields: object) -> pb.SubmitRequest:
    step = pb.StepOverride(address="answer", sampling=pb.Sampling(**fields))
    return submit(overrides=pb.Overrides(steps=[step]))


BAD = [
    ("Submit", pb.SubmitRequest(), "source", "INVALID_ARGUMENT"),
    ("Submit", submit(idempotency_key="k" * 129), "idempotency_key", "INVALID_ARGUMENT"),
    ("Submit", submit(inputs={"who": {}}), "inputs.who", "INVALID_ARGUMENT"),
    ("Submit", submit(inputs={"who": {"number_value": float("nan")}}), "inputs.who", "INVALID_ARGUMENT"),
    ("Submit", submit(overrides=pb.Overrides(fidelity=2)), "overrides.fidelity", "UNIMPLEMENTED"),
    ("Submit", submit(overrides=pb.Overrides(fidelity=3)), "overrides.fidelity", "UNIMPLEMENTED"),
    ("Submit", submit(overrides=pb.Overrides(fidelity=5)), "overrides.fidelity", "UNIMPLEMENTED"),
    ("Submit", submit(overrides=pb.Overrides(fidelity=6)), "overrides.fidelity", "INVALID_ARGUMENT"),
    ("Submit", submit(overrides=pb.Overrides(fidelity=99)), "overrides.fidelity", "INVALID_ARGUMENT"),
    ("Submit", submit(overrides=pb.Overrides(seed=-1)), "overrides.seed", "INVALID_ARGUMENT"),
    ("Submit", submit(overrides=pb.Overrides(steps=[pb.StepOverride()])), "overrides.steps[0].address", ""),
    ("Submit", sampled(max_tokens=-1), "overrides.steps[0].sampling.max_tokens", ""),
    ("Submit", sampled(max_tokens=0), "overrides.steps[0].sampling.max_tokens", ""),
    ("Submit", sampled(temperature=float("nan")), "overrides.steps[0].sampling.temperature", ""),
    ("Submit", sampled(temperature=float("inf")), "overrides.steps[0].sampling.temperature", ""),
    ("Submit", sampled(temperature=2.5), "overrides.steps[0].sampling.temperature", ""),
    ("Submit", sampled(top_p=0.0), "overrides.steps[0].sampling.top_p", ""),
    ("Submit", sampled(top_k=-1), "overrides.steps[0].sampling.top_k", ""),
    ("Submit", sampled(seed=-5), "overrides.steps[0].sampling.seed", ""),
    ("Submit", sampled(logprobs=21), "overrides.steps[0].sampling.logprobs", ""),
    ("Submit", sampled(stop=["ok", ""]), "overrides.steps[0].sampling.stop[1]", ""),
    ("Submit", sampled(stop=["x"] * 17), "overrides.steps[0].sampling.stop", ""),
    ("Submit", sampled(forced_text=""), "overrides.steps[0].sampling.forced_text", ""),
    ("Run", pb.RunRequest(), "submit", ""),
    ("Run", pb.RunRequest(submit=pb.SubmitRequest()), "submit.source", ""),
    ("Watch", pb.WatchRequest(), "workflow_id", ""),
    ("Watch", pb.WatchRequest(workflow_id="wf-1", after_event=-1), "after_event", ""),
    ("Get", pb.GetRequest(), "workflow_id", ""),
    ("List", pb.ListRequest(states=[42]), "states[0]", ""),
    ("Cancel", pb.CancelRequest(), "workflow_id", ""),
    ("CompleteStep", pb.CompleteStepRequest(workflow_id="wf-1"), "address", ""),
    ("FailStep", pb.FailStepRequest(address="a"), "workflow_id", ""),
]


def test_bad_requests_name_the_field() -> None:
    async def main() -> None:
        async with serving() as served:
            channel = served.client._channel
            for method, request, path, status in BAD:
                call = getattr(channel.workflows, method)
                streams = method in ("Run", "Watch")
                error = await error_of(channel.items(call(request)) if streams else channel.call(call, request))
                assert (error.field, error.status) == (path, status or "INVALID_ARGUMENT"), request
            assert served.executor.submitted == []

    asyncio.run(main())


def test_requests_that_cannot_be_read() -> None:
    async def main() -> None:
        async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
            raw = channel.unary_unary("/laban.v1.Workflows/Get")
            for data in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28"):  # no protobuf; text that is not UTF-8
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await raw(data)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "cannot be read" in caught.value.details()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/laban.v1.Workflows/Fly")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


def test_a_request_of_100_mb_is_refused_and_the_next_one_runs() -> None:
    async def main() -> None:
        async with serving() as served:
            error = await error_of(served.client.submit("#" * 100_000_000))
            assert type(error) is Exhausted
            assert "16777216" in str(error)
            await served.client.submit(YAML)

    asyncio.run(main())


def test_a_large_record_reaches_our_client() -> None:
    async def main() -> None:
        from dataclasses import replace

        executor = FakeExecutor()
        large = replace(RECORD, steps=tuple(replace(RECORD.steps[0], text="x" * 10_000) for _ in range(2000)))
        executor._find = lambda workflow_id: large  # type: ignore[method-assign]
        async with serving(executor) as served:
            assert await served.client.get("wf-1") == large

    asyncio.run(main())


def test_an_internal_error_says_no_more_than_its_number(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> LabanError:
        async with serving(FakeExecutor(error=RuntimeError("secret"))) as served:
            return await error_of(served.client.get("wf-1"))

    error = asyncio.run(main())
    assert error.status == "INTERNAL"
    assert "secret" not in str(error)
    [logged] = [entry for entry in caplog.records if entry.name == "laban.cluster.gateway_service"]
    assert logged.getMessage().split()[-1] in str(error)


def test_a_client_that_leaves_ends_the_watch_but_not_the_workflow() -> None:
    async def main() -> None:
        async with serving(FakeExecutor(script=EVENTS[:2], hang=True)) as served:
            stream = served.client.run(YAML, {"who": "A"})
            await anext(stream)
            await stream.aclose()
            await eventually(lambda: served.executor.watches_open == 0, "the watch is closed")
            assert served.executor.cancelled == []

    asyncio.run(main())


def test_a_client_that_leaves_cancels_if_it_asked_to() -> None:
    async def main() -> None:
        async with serving(FakeExecutor(script=EVENTS[:2], hang=True)) as served:
            stream = served.client.run(YAML, {"who": "A"}, cancel_on_disconnect=True)
            await anext(stream)
            await stream.aclose()
            await eventually(lambda: served.executor.cancelled == ["wf-1"], "the workflow is cancelled")
            assert served.executor.watches_open == 0

    asyncio.run(main())


def test_leaving_before_the_submit_is_through_still_cancels() -> None:
    async def main() -> None:
        executor = FakeExecutor(submit_gate=asyncio.Event())
        async with serving(executor) as served:
            call = served.client._channel.workflows.Run(pb.RunRequest(submit=submit(), cancel_on_disconnect=True))
            reading = asyncio.ensure_future(call.read())
            await asyncio.sleep(0.2)
            call.cancel()
            await asyncio.wait([reading])
            await asyncio.sleep(0.1)
            assert executor.cancelled == []
            assert executor.submit_gate is not None
            executor.submit_gate.set()
            await eventually(lambda: executor.cancelled == ["wf-1"], "the workflow is cancelled")

    asyncio.run(main())


def test_a_finished_run_is_not_cancelled() -> None:
    async def main() -> None:
        async with serving() as served:
            async for _ in served.client.run(YAML, {"who": "A"}, cancel_on_disconnect=True):
                continue
            await asyncio.sleep(0.1)
            assert served.executor.cancelled == []

    asyncio.run(main())


def test_a_client_that_never_reads_holds_little() -> None:
    async def main() -> None:
        async with serving(FakeExecutor(script=(), endless=True)) as served:
            call = served.client._channel.workflows.Watch(pb.WatchRequest(workflow_id="wf-1"))
            await call.wait_for_connection()
            await eventually(lambda: served.executor.produced > 0, "chunks are made")
            before = -1
            while served.executor.produced != before:  # until nothing more is taken from the executor
                before = served.executor.produced
                assert before * 10_000 < 32_000_000
                await asyncio.sleep(0.3)
            assert await served.client.get("wf-1") == RECORD  # others are served meanwhile
            call.cancel()
            await eventually(lambda: served.executor.watches_open == 0, "the watch is closed")

    asyncio.run(main())


def test_deadlines_end_calls() -> None:
    async def main() -> None:
        executor = FakeExecutor(script=EVENTS[:1], hang=True, submit_gate=asyncio.Event())
        async with serving(executor) as served:
            hasty = AsyncClient(served.address, timeout_s=0.3)
            error = await error_of(hasty.submit(YAML, {"who": "A"}))
            assert error.status == "DEADLINE_EXCEEDED"
            await hasty.close()
            call = served.client._channel.workflows.Watch(pb.WatchRequest(workflow_id="wf-1"), timeout=0.3)
            error = await error_of(served.client._channel.items(call))
            assert error.status == "DEADLINE_EXCEEDED"
            await eventually(lambda: executor.watches_open == 0, "the watch is closed")

    asyncio.run(main())


def test_stop_ends_streams_with_unavailable() -> None:
    async def main() -> None:
        async with serving(FakeExecutor(script=EVENTS[:1], hang=True)) as served:
            stream = served.client.watch("wf-1")
            await anext(stream)
            ending = asyncio.ensure_future(error_of(stream))
            await served.gateway.stop(0.1)
            error = await ending
            assert type(error) is Unavailable
            assert "stopping" in str(error)
            assert served.executor.watches_open == 0
            error = await error_of(served.client.get("wf-1"))
            assert type(error) is Unavailable
            assert served.address in str(error)
            await served.gateway.stop(0.1)  # a second time: nothing

    asyncio.run(main())


def test_stop_lets_calls_end() -> None:
    async def main() -> None:
        executor = FakeExecutor(submit_gate=asyncio.Event())
        async with serving(executor) as served:
            submitting = asyncio.ensure_future(served.client.submit(YAML, {"who": "A"}))
            await asyncio.sleep(0.3)
            stopping = asyncio.ensure_future(served.gateway.stop(10))
            await asyncio.sleep(0.1)
            assert executor.submit_gate is not None
            executor.submit_gate.set()
            assert await submitting == RECORD
            await stopping

    asyncio.run(main())


def test_a_port_in_use_is_said() -> None:
    async def main() -> None:
        async with serving() as served:
            other = Gateway(FakeExecutor(), FakeSessions(), lambda: STATUS)
            with pytest.raises(FailedPrecondition, match="in use") as caught:
                await other.start("127.0.0.1", served.port)
            assert (caught.value.field, caught.value.value) == ("port", served.port)
            assert await served.client.get("wf-1") == RECORD
            for host, port, path in (("127.0.0.1", 70_000, "port"), ("no.such.host.invalid", 0, "host")):
                with pytest.raises(InvalidInput) as refused:
                    await other.start(host, port)
                assert refused.value.field == path
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                with pytest.raises(FailedPrecondition, match="in use"):
                    await other.start("127.0.0.1", taken.getsockname()[1])
            # After all that it still starts.
            assert await other.start("127.0.0.1", 0) > 0
            await other.stop(0)

    asyncio.run(main())


def test_health_follows_readiness() -> None:
    async def main() -> None:
        async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def says() -> set[int]:
                names = ("", *SERVICES)
                return {(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}

            assert await says() == {health_pb2.HealthCheckResponse.NOT_SERVING}
            await served.gateway.set_ready(True)
            assert await says() == {health_pb2.HealthCheckResponse.SERVING}
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            stopping = asyncio.ensure_future(served.gateway.stop(0.1))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await stopping

    asyncio.run(main())


def test_reflection_lists_the_services() -> None:
    async def main() -> None:
        async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(
                iter([
                    reflection_pb2.ServerReflectionRequest(list_services=""),
                    reflection_pb2.ServerReflectionRequest(file_containing_symbol="laban.v1.Workflows"),
                ])
            )  # fmt: skip
            names = {item.name for item in (await call.read()).list_services_response.service}
            assert names >= {"laban.v1.Workflows", "laban.v1.Choreography", "laban.v1.Cluster", "grpc.health.v1.Health"}
            assert (await call.read()).file_descriptor_response.file_descriptor_proto

    asyncio.run(main())


def test_calls_beyond_the_limit_are_refused() -> None:
    async def main() -> None:
        executor = FakeExecutor(script=EVENTS[:1], hang=True)
        async with serving(executor, limits=GatewayLimits(max_concurrent_calls=2)) as served:
            streams = [served.client.watch("wf-1") for _ in range(2)]
            for stream in streams:
                await anext(stream)
            assert type(await error_of(served.client.get("wf-1"))) is Exhausted
            for stream in streams:
                await stream.aclose()
            await eventually(lambda: executor.watches_open == 0, "the watches are closed")
            for _ in range(1000):  # gRPC counts a call until a little after its end
                try:
                    assert await served.client.get("wf-1") == RECORD
                    return
                except Exhausted:
                    await asyncio.sleep(0.01)
            raise AssertionError("calls that ended still count")

    asyncio.run(main())


def test_the_generated_stubs_reach_every_method() -> None:
    async def main() -> None:
        async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
            response = await pb_grpc.ClusterStub(channel).GetStatus(pb.GetStatusRequest())
            assert response.workers[0].worker_id == "w0"

    asyncio.run(main())
    methods = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    assert len(methods) == 15
