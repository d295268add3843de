"""A shard as a service: polls that wait for news, one at a time; and what the feed tells it of uses and pins."""

from __future__ import annotations

import asyncio

from executor_rig import until
from loop_directory import LoopDirectory

from laban.actors.directory import DirectoryService
from laban.cluster.routing.directory_feed import DirectoryFeed
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.routing.told_uses import ToldUses
from laban.kvstore.directory_messages import Answer, Batch, Interest, News, Watch
from laban.kvstore.interests import OVERDUE_S
from laban.kvstore.placements import PlacementChange, PlacementState, Tier, pack
from laban.kvstore.uses import Use

READY = pack(Tier.DEVICE, PlacementState.READY, 5)
ANEW = Watch("s", 1, ("a", "b"), (), True)


def run(scenario) -> None:
    async def bounded():
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def test_a_poll_waits_for_news_and_gathers_what_comes_with_it():
    async def scenario():
        service = DirectoryService(gather_s=0.01)
        epoch = await service.register("w")
        assert await service.watch(ANEW)
        first = await service.poll("s", 0, 5.0)
        waiting = asyncio.create_task(service.poll("s", first.number, 5.0))
        await asyncio.sleep(0)
        assert await service.publish(Batch("w", epoch, 1, "changes", (("x", READY, ""),))) is Answer.TAKEN
        await asyncio.sleep(0.02)
        assert not waiting.done(), "nobody watches that"
        for number, name in ((2, "a"), (3, "b")):
            await service.publish(Batch("w", epoch, number, "changes", ((name, READY, ""),)))
        assert {each[0] for each in (await waiting).encodings} == {"a", "b"}

    run(scenario)


def test_a_poll_ends_without_news_when_its_time_is_over_or_another_begins():
    async def scenario():
        service = DirectoryService(gather_s=0.0)
        await service.watch(ANEW)
        await service.poll("s", 0, 5.0)
        assert await service.poll("s", 1, 0.01) == News(1)
        first = asyncio.create_task(service.poll("s", 1, 5.0))
        await asyncio.sleep(0)
        second = asyncio.create_task(service.poll("s", 1, 5.0))
        assert await first == News(1)
        epoch = await service.register("w")
        await service.publish(Batch("w", epoch, 1, "changes", (("a", READY, ""),)))
        assert (await second).encodings
        assert not service._polls

    run(scenario)


def test_a_stranger_is_told_at_once_to_watch():
    async def scenario():
        assert await DirectoryService(gather_s=0.0).poll("s", 3, 5.0) is None

    run(scenario)


def test_time_passes_by_itself_once_somebody_spoke():
    async def scenario():
        service = DirectoryService(late_s=0.02, idle_s=0.05, tick_s=0.005, gather_s=0.0)
        epoch = await service.register("w")
        await service.publish(Batch("w", epoch, 1, "changes", (("a", READY, ""),)))
        await service.watch(ANEW)
        news = await service.poll("s", 0, 5.0)
        if not news.gone:  # else the machine was slow, and it is late already
            news = await service.poll("s", news.number, 5.0)
        assert news.gone == (("w", epoch),), "it was late, and the subscriber hears"
        await until(lambda: not service._shard._records)
        await until(lambda: not len(service._shard._subscriptions))
        assert (await service.status()).workers == ()

    run(scenario)


def test_a_shard_that_came_back_lets_polls_wait_until_the_workers_have_spoken():
    async def scenario():
        service = DirectoryService(restarted=True, settle_s=0.05, tick_s=0.01, gather_s=0.0)
        await service.watch(ANEW)
        began = asyncio.get_running_loop().time()
        assert len((await service.poll("s", 0, 5.0)).encodings) == 2
        assert asyncio.get_running_loop().time() - began >= 0.04

    run(scenario)


def test_uses_and_pins_reach_the_directory_and_one_that_came_back():
    async def scenario():
        directory, view = LoopDirectory(2), DirectoryView(2)
        feed = DirectoryFeed(directory, view, tick_s=0.005, retry_s=0.005, interval_s=0.001, wait_s=0.05)
        names = [f"e{number}" for number in range(6)]
        view.watch("run", names)
        task = asyncio.create_task(feed.run())
        feed.note([(name, Use(2, 50.0)) for name in names], [(names[0], 30.0)])

        def known() -> set[str]:
            records = {name: [shard._shard.find(name, 0.0) for shard in directory.shards] for name in names}
            return {name for name, found in records.items() if any(each.next_use for each in found)}

        await until(lambda: known() == set(names))
        assert sum(shard._shard.find(names[0], 0.0).pinned_s > 0 for shard in directory.shards) == 1
        for shard in range(2):
            directory.restart(shard)
        await until(lambda: known() == set(names))
        feed.note([(names[1], None)], ())
        await until(lambda: known() == set(names) - {names[1]})
        task.cancel()

    run(scenario)


def test_a_feed_outlives_news_that_it_cannot_take():
    async def scenario():
        directory, view = LoopDirectory(), DirectoryView()
        feed = DirectoryFeed(directory, view, retry_s=0.001, interval_s=0.001)
        taken, view.take = view.take, lambda shard, news: 1 / 0
        view.watch("run", ["a"])
        task = asyncio.create_task(feed.run())
        directory.begin("w")
        directory.put("w", [PlacementChange("a", Tier.DEVICE, PlacementState.READY, 5)])
        await until(lambda: directory.polls > 3)
        view.take = taken
        await until(lambda: view.held_by("w") == {"a": 5})
        task.cancel()

    run(scenario)


def test_a_shard_that_hangs_though_its_process_lives_counts_as_down():
    """What was expected of it would expire otherwise: while it is down, that is kept."""

    async def scenario():
        directory, view = LoopDirectory(2), DirectoryView(2)
        feed = DirectoryFeed(directory, view, retry_s=0.005, interval_s=0.001, wait_s=0.02, timeout_s=0.02)
        poll, watch, hanging = directory.poll, directory.watch, asyncio.Event()
        hanging.set()

        async def polls(shard, *asked):
            if shard == 1 and not hanging.is_set():
                await hanging.wait()
            return await poll(shard, *asked)

        async def watches(shard, message):
            if shard == 1 and not hanging.is_set():
                await hanging.wait()
            return await watch(shard, message)

        directory.poll, directory.watch = polls, watches
        view.watch("run", [f"e{number}" for number in range(6)])
        task = asyncio.create_task(feed.run())
        await until(lambda: directory.polls > 4)
        assert view.num_silent == 0
        hanging.clear()
        await until(lambda: view.num_silent == 1)
        view.watch("another", [f"f{number}" for number in range(6)])
        hanging.set()
        await until(lambda: view.num_silent == 0)
        directory.begin("w")
        directory.put("w", [PlacementChange(f"f{n}", Tier.DEVICE, PlacementState.READY, 5) for n in range(6)])
        await until(lambda: len(view.held_by("w")) == 6)
        task.cancel()

    run(scenario)


def test_a_feed_outlives_whatever_a_shard_or_its_view_raises(caplog):
    """Watching, telling of uses and the view's own tick: each fails as nobody foresaw, and all is said in the end."""

    async def scenario():
        directory, view = LoopDirectory(), DirectoryView()
        feed = DirectoryFeed(directory, view, tick_s=0.002, retry_s=0.002, interval_s=0.001, wait_s=5.0)
        watched: list[Watch] = []
        ticks: list[int] = []
        watch, tell, tick = directory.watch, directory.tell, view.tick
        failing = False

        def breaks(what):
            async def call(shard, message):
                if failing:
                    raise RuntimeError(f"{what} is broken")
                if what == "watch":
                    watched.append(message)
                return await (watch if what == "watch" else tell)(shard, message)

            return call

        def ticked():
            ticks.append(1)
            if failing:
                raise RuntimeError("tick is broken")
            tick()

        directory.watch, directory.tell, view.tick = breaks("watch"), breaks("tell"), ticked
        task = asyncio.create_task(feed.run())
        view.watch("run", ["a"])
        await until(lambda: any("a" in each.added for each in watched))
        failing = True
        view.watch("other", ["b"])
        feed.note([("b", Use(2, 50.0))], ())
        await until(lambda: "watch is broken" in caplog.text and "tick is broken" in caplog.text)
        directory.watch = watch  # a shard that may not know what is watched is not told of uses
        await until(lambda: "tell is broken" in caplog.text)
        failing, before = False, len(ticks)
        await until(lambda: directory.shards[0]._shard.find("b", 0.0).next_use is not None)
        await until(lambda: len(ticks) > before)
        assert not task.done()
        task.cancel()

    run(scenario)


def test_time_goes_on_passing_after_a_tick_that_failed(caplog):
    async def scenario():
        service = DirectoryService(tick_s=0.002, gather_s=0.0)
        tick, service._shard.tick = service._shard.tick, lambda now_s: 1 / 0
        await service.register("w")
        await until(lambda: "ZeroDivisionError" in caplog.text)
        ticks: list[float] = []
        service._shard.tick = lambda now_s: (ticks.append(now_s), tick(now_s))
        await until(lambda: ticks)

    run(scenario)


def test_what_was_told_is_told_again_with_the_time_that_is_left():
    told = ToldUses("s")
    told.put([("a", Use(1, 10.0)), ("b", Use(2, 1.0))], [("a", 5.0), ("c", 9.0)], 100.0)
    assert told.take(102.0) == Interest(
        "s", (("a", Use(1, 8.0)), ("b", Use(2, 0.0)), ("c", None)), (("a", 3.0), ("b", 0.0), ("c", 7.0))
    )
    assert told.take(103.0) is None
    told.put([("a", None), ("unknown", None)], [("c", 0.0), ("unknown", 0.0)], 103.0)
    assert told.take(103.0) == Interest("s", (("a", None), ("c", None)), (("a", 2.0), ("c", 0.0)))
    told.expire(106.0)
    told.repeat()
    assert told.take(106.0) == Interest("s", (("b", Use(2, 0.0)),), (("b", 0.0),))
    told.expire(101.0 + OVERDUE_S)
    assert not len(told)
