"""Explaining where a step went, adding and draining workers: a real gRPC server on a loopback port over fakes."""

from __future__ import annotations

import asyncio

from api_fakes import (
    DRAINED,
    EXPLANATION,
    STATUS,
    WORKER,
    FakeExecutor,
    FakeFleet,
    FakeSessions,
    error_of,
    eventually,
    serving,
)

from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput, NotFound
from laban.cluster.client import AsyncClient, Client
from laban.cluster.gateway import Gateway
from laban.proto import laban_pb2 as pb


def test_a_step_is_explained() -> None:
    async def main() -> None:
        async with serving() as served:
            assert await served.client.explain("wf-1", "answer[bob,2]") == EXPLANATION
            error = await error_of(served.client.explain("wf-1", "final"))
            assert (type(error), error.field) == (NotFound, "address")
            error = await error_of(served.client.explain("wf-2", "final"))
            assert (type(error), error.field) == (NotFound, "workflow_id")
            channel = served.client._channel
            for bad, path in (
                (pb.ExplainStepRequest(address="a"), "workflow_id"),
                (pb.ExplainStepRequest(workflow_id="wf-1"), "address"),
            ):
                error = await error_of(channel.call(channel.workflows.ExplainStep, bad))
                assert (type(error), error.field) == (InvalidInput, path)

    asyncio.run(main())


def test_workers_are_added_and_drained() -> None:
    async def main() -> None:
        async with serving() as served:
            assert await served.client.add_worker() == WORKER
            assert [item async for item in served.client.drain_worker("w0")] == list(DRAINED)
            error = await error_of(served.client.drain_worker("w7"))
            assert (type(error), error.field, error.value) == (NotFound, "worker_id", "w7")
            assert type(await error_of(served.client.drain_worker("last"))) is FailedPrecondition
            assert (await error_of(served.client.drain_worker(""))).field == "worker_id"

            def synchronous() -> None:
                with Client(served.address, timeout_s=20) as client:
                    assert client.explain("wf-1", "answer[bob,2]") == EXPLANATION
                    assert client.add_worker() == WORKER
                    assert list(client.drain_worker("w0")) == list(DRAINED)

            await asyncio.to_thread(synchronous)
            assert served.fleet.added == 2

    asyncio.run(main())


def test_no_room_for_another_worker() -> None:
    async def main() -> None:
        async with serving(fleet=FakeFleet(error=Exhausted("no room", field="workers", value=2))) as served:
            error = await error_of(served.client.add_worker())
            assert (type(error), error.field, error.value) == (Exhausted, "workers", 2)

    asyncio.run(main())


def test_a_worker_comes_up_even_if_the_client_leaves() -> None:
    async def main() -> None:
        fleet = FakeFleet(gate=asyncio.Event())
        async with serving(fleet=fleet) as served:
            error = await error_of(served.client.add_worker(timeout_s=0.2))
            assert error.status == "DEADLINE_EXCEEDED"
            assert fleet.gate is not None
            fleet.gate.set()
            await eventually(lambda: fleet.added == 1, "the worker is up")

    asyncio.run(main())


def test_a_client_that_leaves_a_drain_is_noticed() -> None:
    async def main() -> None:
        fleet = FakeFleet(hang=True)
        async with serving(fleet=fleet) as served:
            stream = served.client.drain_worker("w0")
            assert await anext(stream) == DRAINED[0]
            assert fleet.drains_open == 1
            await stream.aclose()
            await eventually(lambda: fleet.drains_open == 0, "nobody listens any more")

    asyncio.run(main())


def test_without_a_fleet_the_workers_are_what_they_are() -> None:
    async def main() -> None:
        gateway = Gateway(FakeExecutor(), FakeSessions(), lambda: STATUS)
        port = await gateway.start()
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            assert type(await error_of(client.add_worker())) is FailedPrecondition
            assert type(await error_of(client.drain_worker("w0"))) is FailedPrecondition
        await gateway.stop(0)

    asyncio.run(main())
