"""Workers that join and leave while calls run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from executor_rig import rig, until
from loop_directory import LoopDirectory
from orders import Sink, order
from scripted_engine import LoopSupervisor, LoopWorker, ScriptedEngine, encode

from laban.actors.errors import Conflict, Exhausted, FailedPrecondition, NotFound, Unavailable
from laban.actors.ports import WorkerLost
from laban.cluster.dispatch import Dispatcher, DispatchLimits
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import EMPTY_VIEW, make_spec
from laban.kvstore.placements import PlacementChange, PlacementState, Tier
from laban.kvstore.uses import Use

LIMITS = DispatchLimits(restart_delays_s=(0.0, 0.001), start_timeout_s=0.2, drain_timeout_s=0.2, drain_interval_s=0.002)


class Foreseen:
    """Knows of the texts that somebody will read."""

    def __init__(self, *texts: str) -> None:
        specs = [make_spec("model/", encode(text), 0, EMPTY_VIEW, {}) for text in texts]
        self.specs = {spec.encoding_id: spec for spec in specs}

    def next_use(self, encoding_id):
        return Use(1, 2.0) if encoding_id in self.specs else None

    def upcoming(self):
        return {encoding_id: Use(1, 2.0) for encoding_id in self.specs}

    def specs_of(self, encoding_id):
        return (self.specs[encoding_id],) if encoding_id in self.specs else ()


async def with_fleet(scenario, num_workers=2, *, supervisor=None, limits=LIMITS, supervised=True):
    directory = LoopDirectory()
    workers = [LoopWorker(ScriptedEngine(worker_id=f"worker-{n}"), directory) for n in range(num_workers)]
    supervisor = supervisor or (LoopSupervisor(directory=directory) if supervised else None)
    dispatcher = Dispatcher(workers, supervisor=supervisor, directory=directory, limits=limits)
    dispatcher.start()
    try:
        await scenario(dispatcher, workers, Sink())
        dispatcher.router.ledger.check_integrity()
    finally:
        await dispatcher.stop()


def statuses(dispatcher) -> dict[str, bool]:
    return {status.worker_id: status.alive for status in dispatcher.workers()}


# Joining


def test_a_worker_more_serves_and_takes_what_waits():
    async def scenario(dispatcher, workers, sink):
        workers[0].paused = True
        dispatcher.submit([order(sink, "a"), order(sink, "b")])
        await until(lambda: workers[0].batches)
        status = await dispatcher.fleet.add_worker()
        assert (status.worker_id, status.alive) == ("worker-1", True)
        await until(lambda: "b" in sink.ended)
        assert sink.workers["b"] == "worker-1"
        workers[0].resume()
        await until(lambda: "a" in sink.ended)
        assert (await dispatcher.fleet.add_worker("mine")).worker_id == "mine"
        assert statuses(dispatcher) == {"worker-0": True, "worker-1": True, "mine": True}

    asyncio.run(with_fleet(scenario, 1, limits=DispatchLimits(max_calls_per_worker=1)))


def test_a_worker_comes_up_though_whoever_asked_has_left():
    class Slow(LoopSupervisor):
        async def start(self, worker_id, model=""):
            await asyncio.sleep(0.02)
            return await super().start(worker_id)

    async def scenario(dispatcher, workers, sink):
        asked = asyncio.ensure_future(dispatcher.fleet.add_worker("x"))
        await asyncio.sleep(0)
        asked.cancel()
        also = asyncio.ensure_future(dispatcher.fleet.add_worker("x"))
        assert (await also).worker_id == "x"
        assert len(supervisor.made) == 1
        assert (await dispatcher.fleet.add_worker()).worker_id == "worker-2"

    supervisor = Slow(directory=None)
    asyncio.run(with_fleet(scenario, supervisor=supervisor))


def test_what_keeps_a_worker_from_joining_is_said():
    class Stuck(LoopSupervisor):
        async def start(self, worker_id, model=""):
            if worker_id == "dies":
                raise WorkerLost("out of memory")
            if worker_id == "other":
                return LoopWorker(ScriptedEngine(worker_id=worker_id, namespace="another"))
            if worker_id == "changed":
                engine = ScriptedEngine(worker_id=worker_id)
                engine.info = replace(engine.info, adapters=("5f",))
                return LoopWorker(engine)
            await asyncio.sleep(3600)
            return None

    async def scenario(dispatcher, workers, sink):
        fleet = dispatcher.fleet
        with pytest.raises(Conflict, match="is a worker already"):
            await fleet.add_worker("worker-0")
        with pytest.raises(Unavailable, match="out of memory"):
            await fleet.add_worker("dies")
        with pytest.raises(FailedPrecondition, match="another model"):
            await fleet.add_worker("other")
        with pytest.raises(FailedPrecondition, match="other adapters"):
            await fleet.add_worker("changed")
        with pytest.raises(Exhausted, match=r"not up after 0\.2 s"):
            await fleet.add_worker("stuck")
        assert statuses(dispatcher) == {"worker-0": True, "worker-1": True}

    asyncio.run(with_fleet(scenario, supervisor=Stuck()))

    async def alone(dispatcher, workers, sink):
        with pytest.raises(FailedPrecondition, match="nobody to start workers"):
            await dispatcher.fleet.add_worker()

    asyncio.run(with_fleet(alone, supervised=False))


# Leaving


def test_a_drained_worker_ends_its_calls_takes_no_more_and_is_closed():
    async def scenario(dispatcher, workers, sink):
        for worker in workers:
            worker.paused = True
        dispatcher.submit([order(sink, "a", "x" * 50), order(sink, "b", "y" * 50)])
        await until(lambda: all(worker.batches for worker in workers))
        fleet = dispatcher.fleet
        items = fleet.drain_worker("worker-0")
        first = await anext(items)
        assert (first.calls_left, first.encodings_left, first.done) == (1, 0, False)
        assert {s.worker_id: s.draining for s in dispatcher.workers()} == {"worker-0": True, "worker-1": False}
        dispatcher.submit([order(sink, f"c{n}", "x" * 50) for n in range(3)])
        await until(lambda: len(workers[1].batches) == 2)
        again = fleet.drain("worker-0")  # joins it
        for worker in workers:
            worker.resume()
        rest = [item async for item in items]
        await again
        assert rest[-1].done
        assert len(sink.ended) >= 1
        assert workers[0].closed
        assert statuses(dispatcher) == {"worker-1": True}
        await until(lambda: len(sink.ended) == 5)
        assert sum(len(batch) for batch in workers[0].batches) == 1
        await fleet.drain("worker-0")  # out already

    asyncio.run(with_fleet(scenario))


def test_the_last_worker_cannot_be_drained_nor_one_that_nobody_knows():
    async def scenario(dispatcher, workers, sink):
        fleet = dispatcher.fleet
        with pytest.raises(NotFound):
            fleet.drain("worker-9")
        workers[0].paused = True
        dispatcher.submit([order(sink, "a")])
        await until(lambda: workers[0].batches)
        drained = fleet.drain("worker-0")
        with pytest.raises(FailedPrecondition, match="last worker that takes calls"):
            fleet.drain("worker-1")
        workers[0].resume()
        await drained
        with pytest.raises(FailedPrecondition, match="last worker"):
            await anext(fleet.drain_worker("worker-1"))
        await fleet.add_worker("worker-0")  # it may come back
        await fleet.drain("worker-1")
        assert statuses(dispatcher) == {"worker-0": True}
        dispatcher.submit([order(sink, "b")])
        await until(lambda: "b" in sink.ended)

    asyncio.run(with_fleet(scenario))


def test_a_draining_worker_that_dies_is_just_lost():
    async def scenario(dispatcher, workers, sink):
        for worker in workers:
            worker.paused = True
        dispatcher.submit([order(sink, "a", "x" * 50), order(sink, "b", "y" * 50)])
        await until(lambda: all(worker.batches for worker in workers))
        drained = dispatcher.fleet.drain("worker-0")
        workers[0].kill()
        workers[1].resume()
        await until(lambda: len(sink.ended) == 2)
        await drained
        assert set(sink.workers.values()) == {"worker-1"}
        assert statuses(dispatcher) == {"worker-1": True}
        assert not dispatcher._lives.returning

    asyncio.run(with_fleet(scenario))


def test_a_lost_worker_can_be_taken_out():
    class Never(LoopSupervisor):
        async def start(self, worker_id, model=""):
            raise WorkerLost("gone for good")

    async def scenario(dispatcher, workers, sink):
        workers[0].kill()
        await until(lambda: statuses(dispatcher).get("worker-0") is False)
        await until(lambda: not dispatcher._lives.returning)
        await dispatcher.fleet.drain("worker-0")
        assert statuses(dispatcher) == {"worker-1": True}

    asyncio.run(with_fleet(scenario, supervisor=Never()))


def test_a_worker_whose_start_hangs_is_tried_again():
    """As of a model on a file system that does not answer: calls would wait for it for ever."""

    class Hanging(LoopSupervisor):
        tries, is_mended = 0, False

        async def start(self, worker_id, model=""):
            self.tries += 1
            if not self.is_mended:
                await asyncio.sleep(3600)
            return await super().start(worker_id, model)

    supervisor = Hanging()
    limits = replace(LIMITS, start_timeout_s=0.02, slow_restart_s=(0.02, 0.05))

    async def scenario(dispatcher, workers, sink):
        workers[0].kill()
        await until(lambda: not dispatcher._lives.returning and supervisor.tries >= 2)
        assert dispatcher.workers()[0].problem.endswith("was not up after 0.02 s; is there room for it?")
        dispatcher.submit([order(sink, "a")])
        await until(lambda: "a" in sink.ended)
        assert sink.ended["a"].status == "UNAVAILABLE"
        supervisor.is_mended = True
        await until(lambda: statuses(dispatcher) == {"worker-0": True})

    asyncio.run(with_fleet(scenario, 1, supervisor=supervisor, limits=limits))


def test_a_lost_worker_comes_back_whenever_what_was_wrong_is_mended():
    class Broken(LoopSupervisor):
        tries, is_mended = 0, False

        async def start(self, worker_id, model=""):
            self.tries += 1
            if not self.is_mended:
                raise WorkerLost(f"no room, the {self.tries}th time")
            return await super().start(worker_id, model)

    supervisor = Broken()
    limits = replace(LIMITS, slow_restart_s=(0.02, 0.05))

    async def scenario(dispatcher, workers, sink):
        workers[0].kill()
        await until(lambda: supervisor.tries == 2)
        await until(lambda: not dispatcher._lives.returning)
        (lost,) = dispatcher.workers()
        assert lost.problem == "2 tries to bring it back have failed, the next try in 0 s: no room, the 2th time"
        dispatcher.submit([order(sink, "a")])  # nobody waits for what may take for ever
        await until(lambda: "a" in sink.ended)
        assert sink.ended["a"].status == "UNAVAILABLE"
        await until(lambda: supervisor.tries >= 6)
        assert dispatcher.workers()[0].problem.startswith(("5 tries", "6 tries"))
        supervisor.is_mended = True
        await until(lambda: statuses(dispatcher) == {"worker-0": True})
        assert dispatcher.workers()[0].problem == ""
        dispatcher.submit([order(sink, "b")])
        await until(lambda: "b" in sink.ended)
        tries = supervisor.tries
        await asyncio.sleep(0.2)
        assert supervisor.tries == tries

    asyncio.run(with_fleet(scenario, 1, supervisor=supervisor, limits=limits))


@pytest.mark.parametrize("proves", ["nothing", "itself", "by a call"])
def test_a_worker_that_comes_back_broken_is_made_anew_after_longer_and_longer_waits(proves):
    """Each life ends by itself, right after it began or after it has shown that it is good for something."""
    begun = []

    class Breaking(LoopSupervisor):
        async def start(self, worker_id, model=""):
            begun.append(asyncio.get_running_loop().time())
            return await super().start(worker_id, model)

    supervisor = Breaking()
    limits = replace(LIMITS, restart_delays_s=(0.0, 0.1, 0.2), proven_s=0.0 if proves == "itself" else 60.0)

    async def scenario(dispatcher, workers, sink):
        for number in range(5):
            if proves == "by a call":
                dispatcher.submit([order(sink, f"call-{number}")])
                await until(lambda key=f"call-{number}": key in sink.ended)
            (supervisor.made[-1] if supervisor.made else workers[0]).kill("the card is broken")
            if number == 3 and proves == "nothing":
                await until(lambda: not statuses(dispatcher)["worker-0"])
                said = "3 tries to bring it back have failed, the next try in 0 s: it ended 0 s after it had come up: "
                assert dispatcher.workers()[0].problem == f"{said}the card is broken"
            await until(lambda count=number + 1: len(supervisor.made) == count)
            await until(lambda: statuses(dispatcher)["worker-0"])
            assert dispatcher.workers()[0].problem == ""
        waits = [after - before for before, after in pairwise(begun)]
        if proves == "nothing":
            assert all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.2, 0.2), strict=True))
        else:
            assert sum(waits) < 0.3

    asyncio.run(with_fleet(scenario, 1, supervisor=supervisor, limits=limits))


@pytest.mark.parametrize("how", ["taken out", "added"])
def test_a_lost_worker_that_is_taken_out_or_added_anew_is_not_tried_again(how):
    class Broken(LoopSupervisor):
        tries = 0

        async def start(self, worker_id, model=""):
            self.tries += 1
            if worker_id == "worker-0" and self.tries <= 3:
                raise WorkerLost("no room")
            return await super().start(worker_id, model)

    supervisor = Broken()

    async def scenario(dispatcher, workers, sink):
        workers[0].kill()
        await until(lambda: supervisor.tries == 3)
        await until(lambda: not dispatcher._lives.returning)
        if how == "taken out":
            await dispatcher.fleet.drain("worker-0")
        else:
            await dispatcher.fleet.add_worker("worker-0")
        tries = supervisor.tries
        await asyncio.sleep(0.3)
        assert supervisor.tries == tries
        assert statuses(dispatcher) == {"worker-1": True} | ({} if how == "taken out" else {"worker-0": True})

    asyncio.run(with_fleet(scenario, supervisor=supervisor, limits=replace(LIMITS, slow_restart_s=(0.02, 0.2))))


def test_a_lost_worker_that_could_not_be_added_is_still_lost_and_tried_again():
    class Broken(LoopSupervisor):
        tries, at_once, is_mended = 0, 0, False

        async def start(self, worker_id, model=""):
            self.tries += 1
            assert self.at_once == 0, "two tries to start one worker"
            self.at_once += 1
            try:
                if self.tries == 3:  # added by somebody, while the next tries are due
                    await asyncio.sleep(0.1)
                if not self.is_mended:
                    raise WorkerLost("no room")
                return await super().start(worker_id, model)
            finally:
                self.at_once -= 1

    supervisor = Broken()

    async def scenario(dispatcher, workers, sink):
        workers[0].kill()
        await until(lambda: supervisor.tries == 2)
        await until(lambda: not dispatcher._lives.returning)
        adding = asyncio.ensure_future(dispatcher.fleet.add_worker("worker-0"))
        await until(lambda: supervisor.tries == 3)
        assert statuses(dispatcher) == {"worker-0": False, "worker-1": True}
        counts = dispatcher._lives.count(workers[0].info.namespace)
        assert counts == {"up": 1, "draining": 0, "lost": 0, "returning": 0, "starting": 1}
        with pytest.raises(Unavailable, match="no room"):
            await adding
        assert statuses(dispatcher) == {"worker-0": False, "worker-1": True}
        supervisor.is_mended = True
        await until(lambda: statuses(dispatcher) == {"worker-0": True, "worker-1": True})

    asyncio.run(with_fleet(scenario, supervisor=supervisor, limits=replace(LIMITS, slow_restart_s=(0.04, 0.05))))


class Helping(LoopWorker):
    """Does as it is told by advice: what it is to prefetch it has soon."""

    def advise(self, advice):
        super().advise(advice)
        changes = []
        for prefetch in advice.prefetches:
            spec = prefetch.specs[-1]
            self.engine.held[spec.encoding_id] = spec.num_tokens
            changes.append(PlacementChange(spec.encoding_id, Tier.HOST, PlacementState.READY, spec.num_tokens))
        self.directory.put(self.info.worker_id, changes)


async def with_holder(scenario, kinds, foreseen, texts=("x" * 50, "y" * 60, "z" * 70)):
    """The first worker holds all these texts, nobody else does."""
    directory = LoopDirectory()
    workers = [kind(ScriptedEngine(worker_id=f"worker-{n}"), directory) for n, kind in enumerate(kinds)]
    dispatcher = Dispatcher(workers, directory=directory, limits=LIMITS)
    dispatcher.foresee(foreseen)
    dispatcher.start()
    try:
        ids = {}
        for text in texts:
            spec = make_spec("model/", encode(text), 0, EMPTY_VIEW, {})
            ids[text] = spec.encoding_id
            placed = PlacementChange(spec.encoding_id, Tier.DEVICE, PlacementState.READY, spec.num_tokens)
            directory.put("worker-0", [placed])
        view = dispatcher.directory
        view.watch("wf-1", list(ids.values()))
        await until(lambda: all(view.tier_of("worker-0", each) is Tier.DEVICE for each in ids.values()))
        await scenario(dispatcher, workers, ids)
        dispatcher.router.ledger.check_integrity()
        assert not dispatcher.router.ledger.coming
    finally:
        await dispatcher.stop()


def test_what_others_will_need_is_taken_over_before_the_worker_leaves():
    texts = ("x" * 50, "y" * 60, "z" * 70)

    async def scenario(dispatcher, workers, ids):
        items = [item async for item in dispatcher.fleet.drain_worker("worker-0")]
        assert items[-1].done
        assert 2 in [item.encodings_left for item in items]
        taken = [
            prefetch for worker in workers[1:] for advice in worker.engine.advice for prefetch in advice.prefetches
        ]
        assert {prefetch.encoding_id for prefetch in taken} == {ids[texts[0]], ids[texts[1]]}, "nobody reads the third"
        for prefetch in taken:
            [source] = prefetch.sources
            assert (source.worker_id, source.epoch) == ("worker-0", workers[0].info.epoch)
            assert prefetch.specs[-1].encoding_id == prefetch.encoding_id
            assert prefetch.compute
        uses = [use for worker in workers[1:] for advice in worker.engine.advice for _, use in advice.uses]
        assert uses == [Use(1, 2.0)] * 2, "or else it would be given up at once"
        assert workers[0].closed

    asyncio.run(with_holder(scenario, (LoopWorker, Helping, Helping), Foreseen(*texts[:2])))


def test_nothing_is_taken_over_that_is_elsewhere():
    async def scenario(dispatcher, workers, ids):
        shared = ids["x" * 50]
        workers[0].directory.put("worker-1", [PlacementChange(shared, Tier.DISK, PlacementState.READY, 50)])
        await until(lambda: dispatcher.directory.tier_of("worker-1", shared) is Tier.DISK)
        await dispatcher.fleet.drain("worker-0")
        assert not workers[1].engine.advice

    asyncio.run(with_holder(scenario, (LoopWorker, Helping), Foreseen("x" * 50)))


def test_a_worker_leaves_in_the_end_though_nobody_takes_over(caplog):
    async def scenario(dispatcher, workers, ids):
        await dispatcher.fleet.drain("worker-0")
        assert workers[1].engine.advice, "it was asked"
        assert workers[0].closed

    asyncio.run(with_holder(scenario, (LoopWorker, LoopWorker), Foreseen("x" * 50)))
    assert "leaves with 1 encodings" in caplog.text


def test_a_worker_that_was_to_take_over_and_died_is_replaced():
    class Mortal(LoopWorker):
        def advise(self, advice):
            super().advise(advice)
            self.kill()

    async def scenario(dispatcher, workers, ids):
        await dispatcher.fleet.drain("worker-0")
        assert workers[0].closed
        assert workers[1].engine.advice
        assert workers[2].engine.advice
        assert dispatcher.directory.tier_of("worker-2", ids["x" * 50]) is Tier.HOST

    # Of equals the first by id is asked first.
    asyncio.run(with_holder(scenario, (LoopWorker, Mortal, Helping), Foreseen("x" * 50)))


def test_workflows_end_while_workers_come_and_go():
    yaml = """
version: 1
name: panel
messages: {task: "What?"}
steps:
  - {step: vote, for_each: 6, read: [task], prefill: "#{{ index }}"}
  - {step: final, read: [task, vote]}
"""

    async def scenario():
        async with rig(2) as r:
            fleet = r.dispatcher.fleet
            ends = [asyncio.ensure_future(r.run(yaml, overrides=Overrides(seed=5))) for _ in range(6)]
            await fleet.add_worker("w2")
            await fleet.drain("w0")
            await fleet.add_worker("w3")
            await fleet.drain("w1")
            records = await asyncio.gather(*ends)
            assert {record.state for record in records} == {"succeeded"}
            assert set(statuses(r.dispatcher)) == {"w2", "w3"}
            reference = {step.address: step.text for step in (await r.run(yaml, overrides=Overrides(seed=5))).steps}
            for record in records:
                assert {step.address: step.text for step in record.steps} == reference

    asyncio.run(scenario())
