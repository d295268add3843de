"""The directory in processes of its own: filled by the workers, rebuilt when a shard dies, rid of who dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from orders import Sink, order
from ray_processes import processes

from laban.actors.remote import (
    RemoteDirectory,
    RemoteSupervisor,
    RemoteWorker,
    WorkerPlan,
    spawn_directory,
    spawn_worker,
)
from laban.cluster.dispatch import Dispatcher
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier, shard_of

pytestmark = pytest.mark.usefixtures("local_ray")

WORKERS = ("w0", "w1")


def plan(worker_id: str, directory) -> WorkerPlan:
    return WorkerPlan(worker_id, "", None, "scripted_engine:ScriptedEngine", num_cpus=0, directory=directory)


class Cluster:
    """Two workers, two shards, a dispatcher."""

    def __init__(self) -> None:
        self.handle = spawn_directory(2)
        self.directory = RemoteDirectory(self.handle)
        plans = [plan(worker_id, self.handle) for worker_id in WORKERS]
        self.workers = {each.worker_id: spawn_worker(each) for each in plans}
        self.supervisor = RemoteSupervisor(plans, self.workers)
        self.sink = Sink()

    async def __aenter__(self) -> Cluster:
        workers = await self.supervisor.start_all()
        self.dispatcher = Dispatcher(workers, supervisor=self.supervisor, directory=self.directory)
        self.dispatcher.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.dispatcher.stop()
        self.handle.end()

    async def run(self, count: int, tag: str) -> list[EncodingId]:
        """The ids of what so many calls left, all of it other than before."""
        orders = [order(self.sink, f"run/{tag}{n}", f"{tag}{n}" + "x" * (100 + n)) for n in range(count)]
        self.dispatcher.submit(orders)
        await self.until(lambda: all(each.key in self.sink.ended for each in orders))
        read = [spec.encoding_id for each in orders for spec in each.call.specs]
        return [*read, *(self.sink.ended[each.key].encoding.encoding_id for each in orders)]

    async def placed(self, ids: list[EncodingId]) -> dict[EncodingId, set[tuple[str, str]]]:
        """Where the directory has them ready: worker and epoch."""
        try:
            records = await self.directory.find(ids)
        except ConnectionError:
            return {}
        assert [record.encoding_id for record in records] == ids
        return {
            record.encoding_id: {
                (placed.worker_id, placed.epoch)
                for placed in record.placements
                if (placed.tier, placed.state) == (Tier.DEVICE, PlacementState.READY)
            }
            for record in records
        }

    def seen(self, ids: list[EncodingId]) -> dict[EncodingId, set[tuple[str, str]]]:
        """Where the dispatcher takes them to be."""
        view = self.dispatcher.directory
        return {each: {(worker_id, view.epochs[worker_id]) for worker_id in view.holders(each)} for each in ids}

    async def until(self, condition, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not (await condition() if asyncio.iscoroutinefunction(condition) else condition()):
                await asyncio.sleep(0.02)


def test_two_shards_learn_what_workers_hold_and_the_dispatcher_from_them():
    async def scenario():
        async with Cluster() as cluster:
            ids = await cluster.run(20, "a")
            assert {shard_of(each, 2) for each in ids} == {0, 1}

            async def known() -> bool:
                return all((await cluster.placed(ids)).values())

            await cluster.until(known)
            placed = await cluster.placed(ids)
            assert {worker_id for holders in placed.values() for worker_id, _ in holders} == set(WORKERS)
            await cluster.until(lambda: not cluster.dispatcher.directory._expected)
            assert cluster.seen(ids) == placed, "nothing is taken for granted any more: it is all confirmed"
            shards = await cluster.directory.status()
            assert [shard.num_encodings for shard in shards] == [
                sum(shard_of(each, 2) == number for each in ids) for number in (0, 1)
            ]

    asyncio.run(scenario())


def test_a_shard_that_is_killed_is_rebuilt_by_the_workers_while_calls_go_on():
    async def scenario():
        async with Cluster() as cluster:
            ids = await cluster.run(10, "a")
            await cluster.until(lambda: not cluster.dispatcher.directory._expected)
            before = cluster.seen(ids)
            pids = set(processes("DirectoryProcess"))
            assert len(pids) == 2
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert cluster.seen(ids) == before, "the view keeps what it knew while no shard is there"
            more = await cluster.run(10, "b")

            async def rebuilt() -> bool:
                return (await cluster.placed(ids)) == before and all((await cluster.placed(more)).values())

            await cluster.until(rebuilt)
            # A shard that not all workers have told again what they hold may be asked before that.
            await cluster.until(lambda: cluster.seen(ids) == before)
            await cluster.until(lambda: not cluster.dispatcher.directory._expected)
            assert cluster.seen([*ids, *more]) == await cluster.placed([*ids, *more])
            assert not pids & set(processes("DirectoryProcess"))
            last = await cluster.run(4, "c")  # and news flows again
            await cluster.until(lambda: not cluster.dispatcher.directory._expected)
            assert cluster.seen(last) == await cluster.placed(last)

    asyncio.run(scenario())


def test_a_killed_workers_entries_vanish_at_once_and_its_next_life_has_a_later_epoch():
    import ray

    async def scenario():
        async with Cluster() as cluster:
            ids = await cluster.run(10, "a")
            await cluster.until(lambda: not cluster.dispatcher.directory._expected)
            before = await cluster.placed(ids)
            assert {worker_id for holders in before.values() for worker_id, _ in holders} == set(WORKERS)
            victim = next(iter(next(iter(before.values()))))
            ray.kill(cluster.workers[victim[0]].first, no_restart=True)
            left = {each: holders - {victim} for each, holders in before.items()}

            async def vanished() -> bool:
                return (await cluster.placed(ids)) == left

            await cluster.until(vanished)
            await cluster.until(lambda: cluster.dispatcher.directory.epochs.get(victim[0], "") > victim[1])
            assert cluster.seen(ids) == left

    asyncio.run(scenario())


def test_a_worker_that_nobody_watches_over_is_forgotten_when_its_heartbeats_end():
    async def scenario():
        handle = spawn_directory(2)
        directory = RemoteDirectory(handle)
        worker = await RemoteWorker.attach(spawn_worker(plan("w9", handle)), "w9")
        sink = Sink()
        dispatcher = Dispatcher([worker])  # it does not talk to the directory
        dispatcher.start()
        made = order(sink, "run/a", "x" * 100)
        dispatcher.submit([made])
        ids = [spec.encoding_id for spec in made.call.specs]
        end = time.monotonic() + 30
        while not (await directory.find(ids))[0].placements:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        await dispatcher.stop()
        began = time.monotonic()
        while (await directory.find(ids))[0].placements:
            assert time.monotonic() < began + 20
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > 3
        assert [shard.workers for shard in await directory.status()] == [(), ()]
        handle.end()

    asyncio.run(scenario())
