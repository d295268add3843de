"""Several gateways over one journal: each answers for every workflow, whoever has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from executor_rig import until
from executor_workflows import CHAIN, asynchronous, tool_step
from grpc import aio
from members_rig import LEASE_S, Book, Cell, Cells, cells

from laban.actors.errors import Conflict, FailedPrecondition, LabanError, NotFound, Unauthenticated, Unavailable
from laban.cluster.client import AsyncClient
from laban.cluster.client_credentials import Credentials
from laban.cluster.config import LabanConfig
from laban.cluster.door import Door
from laban.cluster.gateway import Gateway
from laban.cluster.gateway_relay import PASSED_ON
from laban.cluster.gateway_sharing import Sharing
from laban.cluster.records import Event
from laban.cluster.sessions import Sessions
from laban.proto import laban_pb2 as pb
from laban.proto import laban_pb2_grpc as pb_grpc

CHAIN_OF = CHAIN.replace("question: {type: string}", "question: {default: why}")


@dataclass
class Served:
    cell: Cell
    gateway: Gateway
    address: str

    def client(self, token: str = "acme") -> AsyncClient:
        return AsyncClient(self.address, timeout_s=20, credentials=Credentials(token))


async def serve(cell: Cell, url: str) -> Served:
    config = LabanConfig.model_validate({"journal": {"url": url}})
    gateway = Gateway(
        cell.executor,
        Sessions(cell.dispatcher, cell.executor.languages.of),
        cell.executor.status,
        door=Door(Book()),
        sharing=Sharing(config, cell.executor, cell.membership),
    )
    address = f"127.0.0.1:{await gateway.start()}"
    cell.membership.show(address=address)
    return Served(cell, gateway, address)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Cells, Served, Served]]:
    async with cells(folder) as made:
        both = [await serve(cell, made.url) for cell in made.all]
        addresses = {each.address for each in both}
        await until(lambda: all({each.address for each in cell.membership.members} == addresses for cell in made.all))
        try:
            yield made, both[0], both[1]
        finally:
            for each in both:
                await each.gateway.stop(0)


@asynchronous
async def test_any_gateway_answers_for_every_workflow(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, first, second), first.client() as here, second.client() as there:
        first.cell.worker.paused = True
        runs = (await here.submit(CHAIN_OF)).workflow_id
        own = (await there.submit(CHAIN_OF)).workflow_id
        await there.wait(own)
        record = await there.get(runs)
        assert record == await here.get(runs)
        assert record.steps
        listed, _ = await there.list()
        assert [(each.workflow_id, each.state) for each in listed] == [(own, "succeeded"), (runs, "running")]
        assert {each.name for each in listed} == {record.name}
        page, token = await here.list(page_size=1)
        rest, end = await there.list(page_size=1, page_token=token)
        assert [each.workflow_id for each in page + rest] == [own, runs]
        assert end == ""
        assert [each.workflow_id for each in (await here.list(states=["succeeded"]))[0]] == [own]
        watching = asyncio.create_task(there.wait(runs))
        first.cell.worker.resume()
        assert (await watching).state == "succeeded"
        # What has ended is read from the journal.
        assert await there.get(runs) == await here.get(runs)
        events = [item async for item in there.watch(runs, after_event=2) if isinstance(item, Event)]
        assert [event.number for event in events] == list(range(3, 3 + len(events)))
        assert (await there.cancel(runs)).state == "succeeded"
        await there.delete(runs)
        for client in (here, there):
            with pytest.raises(NotFound):
                await client.get(runs)


@asynchronous
async def test_steps_of_anothers_workflows_are_answered_anywhere(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, first, second), first.client() as here, second.client() as there:
        workflow_id = (await here.submit(tool_step(more="retries: 1"))).workflow_id
        assert await there.lease_step(["run_tests"], wait_s=0) is None  # a gateway hands out its own
        lease = await there.lease_step(["run_tests"], workflow_id=workflow_id)
        assert (await there.renew_lease(lease.lease_id)).lease_id == lease.lease_id
        await there.fail_step(workflow_id, "tests", "broken", lease_id=lease.lease_id)
        with pytest.raises(FailedPrecondition, match="run out"):
            await there.renew_lease(lease.lease_id)
        await there.complete_step(workflow_id, "tests", "fine")
        with pytest.raises(Conflict):
            await there.complete_step(workflow_id, "tests", "not")
        assert (await there.wait(workflow_id)).state == "succeeded"
        waits = (await here.submit(tool_step())).workflow_id
        assert (await there.cancel(waits)).state == "cancelled"


@asynchronous
async def test_a_key_that_came_to_several_gateways_at_once_gives_one_workflow(tmp_path: Path) -> None:
    async with served(tmp_path) as (made, first, second), first.client() as here, second.client() as there:
        found = await asyncio.gather(
            *(client.submit(CHAIN_OF, idempotency_key="k") for client in (here, there) for _ in range(3))
        )
        assert len({record.workflow_id for record in found}) == 1
        assert len(made.with_it(found[0].workflow_id)) == 1
        for client in (here, there):
            items = [item async for item in client.run(CHAIN_OF, idempotency_key="k")]
            assert items[-1].workflow_state == "succeeded"
            assert items[-1].workflow_id == found[0].workflow_id
            with pytest.raises(Conflict, match="with other content"):
                await client.submit(tool_step(), idempotency_key="k")
        await made.with_it(found[0].workflow_id)[0].kill()
        left = there if first.cell.store.is_dead else here
        assert (await left.submit(CHAIN_OF, idempotency_key="k")).workflow_id == found[0].workflow_id
        items = [item async for item in left.run(CHAIN_OF, idempotency_key="k")]
        assert items[-1].workflow_id == found[0].workflow_id


@asynchronous
async def test_a_watch_goes_on_where_the_workflow_went(tmp_path: Path) -> None:
    async with served(tmp_path) as (made, first, second), first.client() as here, second.client() as there:
        first.cell.worker.paused = True
        workflow_id = (await here.submit(CHAIN_OF)).workflow_id
        seen: dict[AsyncClient, list[Event]] = {here: [], there: []}

        async def watch(client: AsyncClient) -> None:
            async for item in client.watch(workflow_id):
                if isinstance(item, Event):
                    seen[client].append(item)

        watches = [asyncio.create_task(watch(client)) for client in seen]
        await until(lambda: all(seen.values()))
        first.cell.store.pause()
        await made.pass_time(LEASE_S + 3)
        first.cell.store.wake()
        await asyncio.gather(*watches)
        assert seen[here] == seen[there]
        assert [event.number for event in seen[here]] == list(range(1, 1 + len(seen[here])))
        assert seen[here][-1].workflow_state == "succeeded"
        assert made.with_it(workflow_id) == [second.cell]


@asynchronous
async def test_who_calls_is_who_calls_at_the_other_gateway(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, first, second), first.client() as here:
        first.cell.worker.paused = True
        runs = (await here.submit(CHAIN_OF)).workflow_id
        ended = (await here.submit(tool_step())).workflow_id
        await here.cancel(ended)
        await until(lambda: len(first.cell.executor.shelf.ended) == 1)
        async with second.client("rival") as rival, second.client("stranger") as stranger:
            assert (await rival.list())[0] == []
            for workflow_id in (runs, ended):
                for call in (rival.get, rival.cancel, rival.delete, rival.wait):
                    with pytest.raises(NotFound):
                        await call(workflow_id)
                with pytest.raises(Unauthenticated):
                    await stranger.get(workflow_id)


@asynchronous
async def test_a_call_is_passed_on_once_and_not_to_who_is_gone(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, first, second), first.client() as here, second.client() as there:
        first.cell.worker.paused = True
        workflow_id = (await here.submit(CHAIN_OF)).workflow_id
        async with aio.insecure_channel(second.address) as channel:
            metadata = (("authorization", "Bearer acme"), (PASSED_ON, "1"))
            with pytest.raises(grpc.RpcError) as caught:
                await pb_grpc.WorkflowsStub(channel).Get(pb.GetRequest(workflow_id=workflow_id), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        first.cell.store.pause()  # its lease runs on
        await first.gateway.stop(0)
        with pytest.raises(Unavailable, match="does not answer"):
            await there.get(workflow_id)
        with pytest.raises(LabanError):
            await there.submit(CHAIN_OF, idempotency_key="x" * 200)
