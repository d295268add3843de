"""Routing over several workers, and the local directory that it goes by."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from executor_rig import FAST, rig, until
from orders import Sink, order
from scripted_engine import LoopSupervisor, LoopWorker, ScriptedEngine

from laban.actors.errors import FailedPrecondition, Unavailable
from laban.cluster.dispatch import Dispatcher, DispatchLimits


async def with_dispatcher(scenario, num_workers=2, limits=FAST):
    workers = [LoopWorker(ScriptedEngine(worker_id=f"w{n}")) for n in range(num_workers)]
    dispatcher = Dispatcher(workers, limits=limits)
    dispatcher.start()
    try:
        await scenario(dispatcher, workers, Sink())
    finally:
        await dispatcher.stop()


def test_calls_follow_what_they_read():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 500)])
        await until(lambda: "a" in sink.ended)
        first = sink.workers["a"]
        for n in range(4):
            dispatcher.submit([order(sink, f"b{n}", "x" * 500)])
            await until(lambda n=n: f"b{n}" in sink.ended)
            assert sink.workers[f"b{n}"] == first

    asyncio.run(with_dispatcher(scenario))


def test_calls_ready_together_spread_but_stay_with_what_is_on_its_way():
    async def scenario(dispatcher, workers, sink):
        for worker in workers:
            worker.paused = True
        texts = {"a": "x" * 500, "b": "y" * 500, "a2": "x" * 500, "b2": "y" * 500}
        dispatcher.submit([order(sink, key, text) for key, text in texts.items()])
        await until(lambda: all(worker.batches for worker in workers))
        sent = {call_id: worker.info.worker_id for worker in workers for batch in worker.batches for call_id in batch}
        assert sent["a#1"] != sent["b#1"]
        assert [len(worker.batches) for worker in workers] == [1, 1], "one batch for each worker"
        for worker in workers:
            worker.resume()
        await until(lambda: len(sink.ended) == 4)

    asyncio.run(with_dispatcher(scenario))


def test_a_worker_that_says_nothing_is_lost_and_its_calls_run_elsewhere(monkeypatch):
    async def scenario(dispatcher, workers, sink):
        for worker in workers:
            worker.paused = True
        dispatcher.submit([order(sink, "a"), order(sink, "b")])
        await until(lambda: all(worker.batches for worker in workers))
        workers[0].silent = True
        async with asyncio.timeout(10):
            while workers[0].info.worker_id in dispatcher._slots:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)  # the other one has no news, and says so
        assert [worker.alive for worker in dispatcher.workers()] == [False, True]
        workers[1].resume()
        await until(lambda: len(sink.ended) == 2)
        assert set(sink.workers.values()) == {"w1"}
        assert workers[0].closed, "whatever its process would still do is void"

    monkeypatch.setattr(LoopWorker, "beat_s", 0.02)
    asyncio.run(with_dispatcher(scenario, limits=replace(FAST, silence_s=0.3)))


def test_a_queue_makes_the_holder_slower_than_encoding_again():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 50)])
        await until(lambda: "a" in sink.ended)
        holder = next(worker for worker in workers if worker.info.worker_id == sink.workers["a"])
        holder.paused = True
        dispatcher.submit([order(sink, "long", "x" * 50 + "y" * 900)])
        other = next(worker for worker in workers if worker is not holder)
        other.paused = True
        await until(lambda: holder.batches[1:] or other.batches)
        busy = holder if holder.batches[1:] else other
        free = other if busy is holder else holder
        before = len(free.batches)
        dispatcher.submit([order(sink, "short", "x" * 50)])
        await until(lambda: len(free.batches) > before)
        assert free.batches[-1] == ["short#1"]
        for worker in workers:
            worker.resume()
        await until(lambda: len(sink.ended) == 3)

    asyncio.run(with_dispatcher(scenario))


def test_full_workers_make_calls_wait_here():
    async def scenario(dispatcher, workers, sink):
        workers[0].paused = True
        dispatcher.submit([order(sink, str(n)) for n in range(5)])
        await until(lambda: workers[0].batches)
        await asyncio.sleep(0)
        assert workers[0].batches == [["0#1", "1#1"]]
        dispatcher.abort(["3"])
        workers[0].resume()
        await until(lambda: len(sink.ended) == 4)
        assert "3" not in sink.ended
        assert dispatcher.num_outstanding == 0
        assert max(len(batch) for batch in workers[0].batches) <= 2

    asyncio.run(with_dispatcher(scenario, 1, DispatchLimits(max_calls_per_worker=2)))


def test_what_calls_left_is_expected_there_at_once():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 20)])
        await until(lambda: "a" in sink.ended)
        assert set(dispatcher.directory.held_by("w0")) == set(workers[0].engine.held)

    asyncio.run(with_dispatcher(scenario, 1))


def test_a_dead_workers_entries_vanish():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 20)])
        await until(lambda: "a" in sink.ended)
        worker_id = sink.workers["a"]
        assert dispatcher.directory.held_by(worker_id)
        next(worker for worker in workers if worker.info.worker_id == worker_id).kill()
        await until(lambda: not dispatcher.directory.held_by(worker_id))
        assert {status.worker_id: status.alive for status in dispatcher.workers()}[worker_id] is False

    asyncio.run(with_dispatcher(scenario))


def test_a_failure_that_aborts_other_calls_of_the_dead_worker_does_not_keep_it_down():
    class Family(Sink):
        def call_failed(self, key, attempt, error):
            super().call_failed(key, attempt, error)
            dispatcher.abort({"a", "b", "c"} - {key})  # as a workflow does that fails

    async def scenario():
        dispatcher.start()
        try:
            sink = Family()
            worker.paused = True
            dispatcher.submit([order(sink, key) for key in ("a", "b", "c")])
            await until(lambda: worker.batches)
            worker.kill()
            await until(lambda: supervisor.made)
            assert set(sink.ended) == {"a"}
            assert dispatcher.num_outstanding == 0
            dispatcher.submit([order(sink, "next")])
            await until(lambda: "next" in sink.workers)
        finally:
            await dispatcher.stop()

    async def main():
        nonlocal worker, supervisor, dispatcher
        worker, supervisor = LoopWorker(ScriptedEngine(worker_id="w0")), LoopSupervisor()
        limits = replace(FAST, max_attempts=1)
        dispatcher = Dispatcher([worker], supervisor=supervisor, limits=limits)
        await scenario()

    worker = supervisor = dispatcher = None
    asyncio.run(main())


def test_workers_of_different_models_are_refused():
    workers = [LoopWorker(ScriptedEngine(worker_id=f"w{n}", namespace=f"model{n}")) for n in range(2)]
    with pytest.raises(FailedPrecondition, match="another model"):
        Dispatcher(workers)
    with pytest.raises(Unavailable):
        Dispatcher([])


def test_a_worker_that_comes_back_with_another_model_is_not_taken():
    class Other:
        def __init__(self):
            self.made = []

        async def start(self, worker_id, model=""):
            self.made.append(LoopWorker(ScriptedEngine(worker_id=worker_id, namespace="other")))
            return self.made[-1]

    async def scenario():
        worker, supervisor, sink = LoopWorker(ScriptedEngine()), Other(), Sink()
        dispatcher = Dispatcher([worker], supervisor=supervisor, limits=FAST)
        dispatcher.start()
        worker.kill()
        dispatcher.submit([order(sink, "a")])
        await until(lambda: "a" in sink.ended)
        assert sink.ended["a"].status == "UNAVAILABLE"
        assert len(supervisor.made) == 3
        assert all(made.closed for made in supervisor.made)
        await dispatcher.stop()

    asyncio.run(scenario())


def test_two_workers_run_many_workflows():
    yaml = """
version: 1
name: panel
messages: {task: "What?"}
steps:
  - {step: vote, for_each: 8, read: [task], prefill: "#{{ index }}"}
  - {step: final, read: [task, vote]}
"""

    async def scenario():
        async with rig(2) as r:
            records = await asyncio.gather(*(r.submit(yaml) for _ in range(6)))
            ended = [await r.end(record.workflow_id) for record in records]
            assert {record.state for record in ended} == {"succeeded"}, ended[0].error
            assert {step.worker for record in ended for step in record.steps} == {"w0", "w1"}

    asyncio.run(scenario())
