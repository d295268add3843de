"""Clients that leave or do not read, deadlines, ports, health, and the end of the gateway."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import pytest
from api_fakes import EVENTS, RECORD, STATUS, YAML, FakeExecutor, FakeSessions, error_of, eventually, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput, Unavailable
from laban.cluster.client import AsyncClient
from laban.cluster.gateway import SERVICES, Gateway, GatewayLimits
from laban.proto import laban_pb2 as pb
from laban.proto import laban_pb2_grpc as pb_grpc


def submit(**fields: object) -> pb.SubmitRequest:
    return pb.SubmitRequest(yaml=YAML.encode(), **fields)


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
            served.gateway.set_ready(True)
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


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="connections are listed on Linux alone")
def test_connections_age_and_calls_do_not_notice() -> None:
    async def main() -> None:
        connections: set[str] = set()
        executor = FakeExecutor()
        async with serving(executor, limits=GatewayLimits(max_connection_age_s=0.2)) as served:
            began = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - began < 1.5:
                assert await served.client.get("wf-1") == RECORD
                connections |= _connections_to(served.port)
                await asyncio.sleep(0.01)
        assert len(connections) > 1

    asyncio.run(main())


def _connections_to(port: int) -> set[str]:
    """The client's end of each that is established."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"}


def test_the_generated_stubs_reach_every_method() -> None:
    async def main() -> None:
        async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
            response = await pb_grpc.ClusterStub(channel).GetStatus(pb.GetStatusRequest())
            assert response.workers[0].worker_id == "w0"

    asyncio.run(main())
    methods = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    assert len(methods) == 27
