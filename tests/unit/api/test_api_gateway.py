"""The gateway over a scripted executor: a real gRPC server on a loopback port."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from api_fakes import EVENTS, LEASE, RECORD, STATUS, YAML, FakeExecutor, error_of, serving
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value

from laban.actors.errors import Exhausted, LabanError, NotFound
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.proto import laban_pb2 as pb


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
            await client.complete_step("wf-1", "human", "text")
            await client.complete_step("wf-1", "human", output={"b": [None, 2], "a": 0}, lease_id="l")
            await client.complete_step("wf-1", "human", output="12")
            await client.fail_step("wf-1", "human", "why")
            await client.fail_step("wf-1", "human", "why", lease_id="l", final=True)
            assert executor.calls[-5:] == [
                ("complete", "wf-1", "human", "text", {"output": None, "lease_id": ""}),
                ("complete", "wf-1", "human", '{"b":[null,2],"a":0}', {"output": None, "lease_id": "l"}),
                ("complete", "wf-1", "human", None, {"output": "12", "lease_id": ""}),
                ("fail", "wf-1", "human", "why", {"lease_id": "", "final": False}),
                ("fail", "wf-1", "human", "why", {"lease_id": "l", "final": True}),
            ]
            assert await client.lease_step(["tests", "b", "tests"], workflow_id="wf-1", handler="me", wait_s=1) == LEASE
            assert await client.lease_step(["tests"], wait_s=0) is None
            assert await client.renew_lease("lease-1") == LEASE
            assert executor.calls[-3:] == [
                ("lease", ("tests", "b"), {"workflow_id": "wf-1", "handler": "me", "wait_s": 1.0}),
                ("lease", ("tests",), {"workflow_id": "", "handler": "", "wait_s": 0.0}),
                ("renew", "lease-1"),
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
            error = await error_of(served.client.submit(YAML + "tools: [x]\n"))
            assert error.status == "UNIMPLEMENTED"
            assert served.executor.submitted == []
            await served.client.submit(YAML)  # and the next one runs

    asyncio.run(main())


def submit(**fields: object) -> pb.SubmitRequest:
    return pb.SubmitRequest(yaml=YAML.encode(), **fields)


def sampled(**fields: object) -> pb.SubmitRequest:
    step = pb.StepOverride(address="answer", sampling=pb.Sampling(**fields))
    return submit(overrides=pb.Overrides(steps=[step]))


TRUE = Value(bool_value=True)
BAD = [
    ("Submit", pb.SubmitRequest(), "source", "INVALID_ARGUMENT"),
    ("Submit", submit(idempotency_key="k" * 129), "idempotency_key", "INVALID_ARGUMENT"),
    ("Submit", submit(idempotency_key="k\0"), "idempotency_key", "INVALID_ARGUMENT"),
    ("Submit", submit(inputs={"who": {}}), "inputs.who", "INVALID_ARGUMENT"),
    ("Submit", submit(inputs={"who": {"number_value": float("nan")}}), "inputs.who", "INVALID_ARGUMENT"),
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
    ("Get", pb.GetRequest(workflow_id="wf\0"), "workflow_id", "INVALID_ARGUMENT"),
    ("List", pb.ListRequest(states=[42]), "states[0]", ""),
    ("Cancel", pb.CancelRequest(), "workflow_id", ""),
    ("CompleteStep", pb.CompleteStepRequest(workflow_id="wf-1"), "address", ""),
    ("FailStep", pb.FailStepRequest(address="a"), "workflow_id", ""),
    ("CompleteStep", pb.CompleteStepRequest(workflow_id="w", address="a", output=Value()), "output", ""),
    ("CompleteStep", pb.CompleteStepRequest(workflow_id="w", address="a", text="x", output=TRUE), "output", ""),
    ("LeaseStep", pb.LeaseStepRequest(), "tools", ""),
    ("LeaseStep", pb.LeaseStepRequest(tools=["a"] * 257), "tools", ""),
    ("LeaseStep", pb.LeaseStepRequest(tools=["a", ""]), "tools[1]", ""),
    ("LeaseStep", pb.LeaseStepRequest(tools=["a" * 129]), "tools[0]", ""),
    ("LeaseStep", pb.LeaseStepRequest(tools=["a"], handler="h" * 129), "handler", ""),
    ("LeaseStep", pb.LeaseStepRequest(tools=["a"], wait=Duration(seconds=61)), "wait", ""),
    ("LeaseStep", pb.LeaseStepRequest(tools=["a"], wait=Duration(seconds=-1)), "wait", ""),
    ("RenewLease", pb.RenewLeaseRequest(), "lease_id", ""),
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
            assert "yaml: has 95.4 MiB; the request has 95.4 MiB and the server takes 16 MiB" in str(error)
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
