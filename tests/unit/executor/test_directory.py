"""The dispatcher with a directory: what it knows comes by news alone, and survives the loss of shards and workers."""

from __future__ import annotations

import asyncio

from executor_rig import FAST, until
from loop_directory import LoopDirectory
from orders import Sink, order
from scripted_engine import LoopSupervisor, LoopWorker, ScriptedEngine

from laban.cluster.dispatch import Dispatcher
from laban.kvstore.placements import PlacementChange, PlacementState, Tier


async def with_directory(scenario, num_shards=2):
    directory = LoopDirectory(num_shards)
    workers = [LoopWorker(ScriptedEngine(worker_id=f"w{n}"), directory) for n in range(2)]
    dispatcher = Dispatcher(workers, directory=directory, supervisor=LoopSupervisor(directory=directory), limits=FAST)
    dispatcher.start()
    try:
        await scenario(dispatcher, workers, directory)
        dispatcher.directory.check_integrity()
    finally:
        await dispatcher.stop()


def held(directory: LoopDirectory, worker_id: str) -> int:
    statuses = [shard._shard.status() for shard in directory.shards]
    return sum(each.num_placements for status in statuses for each in status.workers if each.worker_id == worker_id)


def test_news_confirm_what_was_expected_and_take_back_what_was_evicted():
    async def scenario(dispatcher, workers, directory):
        sink, view = Sink(), dispatcher.directory
        dispatcher.submit([order(sink, "a/1", "x" * 20)])
        await until(lambda: "a/1" in sink.ended)
        worker = next(each for each in workers if each.info.worker_id == sink.workers["a/1"])
        worker_id = worker.info.worker_id
        await until(lambda: not view._expected)
        assert set(view.held_by(worker_id)) == set(worker.engine.held)
        gone = next(iter(worker.engine.held))
        host = PlacementChange(gone, Tier.HOST, PlacementState.READY, 20)
        directory.put(worker_id, [host, PlacementChange(gone, Tier.DEVICE, PlacementState.GONE, 0)])
        await until(lambda: gone not in view.held_by(worker_id))
        assert view.tier_of(worker_id, gone) is Tier.HOST

    asyncio.run(with_directory(scenario))


def test_a_shard_that_comes_back_is_filled_and_watched_anew():
    async def scenario(dispatcher, workers, directory):
        sink, view = Sink(), dispatcher.directory
        dispatcher.submit([order(sink, "a/1", "x" * 20), order(sink, "a/2", "y" * 20)])
        await until(lambda: len(sink.ended) == 2 and not view._expected)
        before = {worker.info.worker_id: dict(view.held_by(worker.info.worker_id)) for worker in workers}
        for shard in range(directory.num_shards):
            directory.restart(shard)
        for worker in workers:
            directory.flush(worker.info.worker_id)  # a heartbeat: to an empty shard it is a gap
            assert held(directory, worker.info.worker_id) == len(worker.engine.held)
        polls = directory.polls
        await until(lambda: directory.polls > polls)
        assert {worker.info.worker_id: dict(view.held_by(worker.info.worker_id)) for worker in workers} == before
        gone = next(iter(workers[0].engine.held))
        directory.put("w0", [PlacementChange(gone, Tier.DEVICE, PlacementState.GONE, 0)])
        await until(lambda: gone not in view.held_by("w0"))

    asyncio.run(with_directory(scenario))


def test_a_dead_workers_entries_vanish_everywhere_and_its_next_life_begins_with_none():
    async def scenario(dispatcher, workers, directory):
        sink, view = Sink(), dispatcher.directory
        dispatcher.submit([order(sink, "a/1", "x" * 20)])
        await until(lambda: "a/1" in sink.ended)
        worker = next(each for each in workers if each.info.worker_id == sink.workers["a/1"])
        worker_id, epoch = worker.info.worker_id, worker.info.epoch
        assert held(directory, worker_id)
        worker.kill()
        await until(lambda: not view.held_by(worker_id) and not held(directory, worker_id))
        await until(lambda: view.epochs.get(worker_id, epoch) != epoch)
        directory.shards[0]._shard.check_integrity()
        assert not view.held_by(worker_id)

    asyncio.run(with_directory(scenario))


def test_it_is_quiet_while_nothing_changes():
    async def scenario(dispatcher, workers, directory):
        await until(lambda: directory.polls >= 2)
        await asyncio.sleep(0.05)
        assert directory.polls == 2, "one open at each shard"

    asyncio.run(with_directory(scenario))
