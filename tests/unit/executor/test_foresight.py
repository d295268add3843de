"""What workers are told of runs, sessions and hints, and when; what they are asked to bring."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from executor_workflows import asynchronous
from foresight_rig import FakeFleet, foresight_of
from played_runs import Played, played, seconds

from laban.cluster.forecasts import UNKNOWN_S, RunForecast, Seen
from laban.cluster.foresight import Foresight
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View, make_spec
from laban.kvstore.placements import Tier
from laban.kvstore.uses import Use

CHAIN = """
steps:
  - {step: draft, agent: ann, read: [m]}
  - {step: review, agent: bob, read: [m, draft]}
  - {step: wrap, agent: ann, read: [n, review]}
"""


class World:
    """A fleet, its foresight, and runs moved by hand on the same clock."""

    def __init__(self, **options) -> None:
        self.fleet = FakeFleet()
        self.foresight = foresight_of(self.fleet, seconds(draft=4.0, review=2.0, wrap=1.0), **options)
        self.runs: dict[str, Played] = {}

    def begin(self, text: str, source: str = "wf", rank: int = 3) -> Played:
        run = self.runs[source] = played(text, now_s=self.fleet.now_s)
        self.foresight.begin(source, run.run, run.book, run, rank)
        self.look()
        return run

    def look(self, seconds: float = 1.0) -> None:
        """A while later."""
        self.fleet.now_s += seconds
        for run in self.runs.values():
            run.now_s = self.fleet.now_s
        self.foresight.look()

    def move(self, run: Played, *finished: str) -> None:
        for address in finished:
            run.finish(address)
            run.begin()
        for source in self.runs:
            self.foresight.moved(source)
        self.look()


def specs_of(*texts: str) -> list[EncodingSpec]:
    """A chain."""
    found: dict[str, EncodingSpec] = {}
    view, start = EMPTY_VIEW, 0
    for text in texts:
        spec = make_spec("space", tuple(map(ord, text)), start, view, found)
        found[spec.encoding_id] = spec
        view, start = View(spec.encoding_id), spec.stop
    return list(found.values())


# Uses


def test_those_that_hold_an_encoding_are_told_when_it_is_read_next() -> None:
    world = World(prefetch=False)
    run = world.begin(CHAIN)
    assert world.fleet.told() == {}  # nobody holds anything
    world.fleet.put("w1", run.home("m"))  # read by nobody: it stands behind prompts
    _, prompt, message = [each for each, _ in run.look().readers[0].encodings]
    world.fleet.put("w0", prompt)
    world.fleet.put("w1", prompt)
    world.look()
    # The draft began two looks ago and takes 4 s.
    assert world.fleet.told() == {worker: {prompt: Use(1, 2.0, 1.0, True, 3)} for worker in ("w0", "w1")}
    world.look()
    assert world.fleet.told() == {}  # told once
    world.fleet.put("w1", message)
    world.look(0.5)
    assert world.fleet.told() == {"w1": {message: Use(1, 0.5, 1.0, True, 3)}}


def test_a_changed_use_is_told_anew_and_one_that_wavers_is_not() -> None:
    world = World(prefetch=False)
    run = world.begin(CHAIN)
    prompt = run.look().readers[0].encodings[1][0]
    world.fleet.put("w0", prompt)
    world.look()
    world.fleet.take()
    run.history.observe("w", "draft", "generate", 4.05)
    world.move(run)
    assert world.fleet.told() == {}
    run.queued = {"review"}
    world.move(run, "draft")
    assert world.fleet.told()["w0"][prompt] == Use(0, 0.0, 1.0, True, 3)
    run.queued = set()
    world.move(run)
    assert world.fleet.told() == {"w0": {prompt: None}}
    world.move(run)
    assert world.fleet.told() == {}


def test_the_nearest_use_of_all_runs_counts() -> None:
    world = World(prefetch=False)
    first = world.begin(CHAIN, "one", rank=1)
    prompt = first.look().readers[0].encodings[1][0]
    world.fleet.put("w0", prompt)
    world.look()
    world.fleet.take()
    world.begin(CHAIN, "two", rank=2)
    assert world.fleet.told() == {}  # it comes later than the first
    world.foresight.end("one")
    world.look()
    assert world.fleet.told()["w0"][prompt].rank == 2
    world.foresight.end("two")
    world.look()
    assert world.fleet.told() == {"w0": {prompt: None}}
    assert not world.foresight._book
    assert world.fleet.directory.watching.named() == {prompt}  # the test's own


def test_what_is_overdue_is_expected_later_again() -> None:
    world = World(prefetch=False)
    run = world.begin(CHAIN)
    prompt = run.look().readers[0].encodings[1][0]
    world.fleet.put("w0", prompt)
    world.look()
    world.fleet.take()
    world.look(20.0)  # nothing has moved, but the draft should have ended
    use = world.fleet.told()["w0"][prompt]
    assert use is not None
    assert use.in_s == pytest.approx(0.5 * 18.0)  # it is late by 18 s


def test_what_is_watched_is_what_will_be_read() -> None:
    world = World(prefetch=False)
    run = world.begin(CHAIN)
    assert world.fleet.directory.watching.named() == run.look().uses.keys()
    world.move(run, "draft", "review")
    assert world.fleet.directory.watching.named() == run.look().uses.keys()
    assert world.foresight.uses("wf").keys() == run.look().uses.keys()
    world.foresight.end("wf")
    assert not world.fleet.directory.watching.named()
    assert world.foresight.uses("wf") == {}


def test_one_run_that_cannot_be_looked_at_does_not_stop_the_others() -> None:
    world = World(prefetch=False)
    broken = played(CHAIN)
    broken.queued_reads = lambda address: 1 / 0  # type: ignore[method-assign]
    world.foresight.begin("broken", broken.run, broken.book, broken, 0)
    run = world.begin(CHAIN)
    world.look()
    assert world.foresight.uses("wf").keys() == run.look().uses.keys()
    assert world.foresight.uses("broken") == {}


def test_what_a_run_has_read_for_the_last_time_is_told_where_it_did() -> None:
    world = World(prefetch=False)
    run = world.begin(CHAIN)
    prompt, message = run.read("draft")[-2:]
    run.finish("draft")
    run.begin()
    world.foresight.read("wf", run.steps["draft"], "w1")
    world.foresight.moved("wf")
    world.look()
    # Only the review reads what follows, behind another prompt.
    assert dict(world.fleet.take())["w1"].over == (run.home("draft"),)
    run.finish("review")
    world.foresight.read("wf", run.steps["review"], "w0")
    world.foresight.end("wf")
    world.look()
    over = {worker: set(advice.over) for worker, advice in world.fleet.take()}
    assert over == {"w0": {run.read("review")[-1], run.home("review")}}
    assert {prompt, message}.isdisjoint(over["w0"])  # others' as well


def test_what_another_run_will_read_is_not_over() -> None:
    text = "steps: [{step: draft, agent: ann, read: [m]}, {step: wrap, read: [draft], fidelity: direct}]"
    world = World(prefetch=False)
    first, second = world.begin(text, "one"), world.begin(text, "two")
    first.finish("draft")
    second.finish("draft")  # the same text under the same view
    world.foresight.moved("two")
    world.foresight.read("one", first.steps["draft"], "w0")
    world.foresight.end("one")
    world.look()
    assert not [advice.over for _, advice in world.fleet.take() if advice.over]
    world.foresight.read("two", second.steps["draft"], "w0")
    world.foresight.forget("two")  # it goes on elsewhere
    world.look()
    assert not [advice.over for _, advice in world.fleet.take() if advice.over]


# Prefetches


def test_what_the_next_call_lacks_is_brought_to_where_it_will_run() -> None:
    world = World()
    run = world.begin("steps: [{step: draft, agent: ann, read: [m]}, {step: review, agent: bob, read: [m, draft]}]")
    root, prompt, message = [each for each, _ in run.look().readers[0].encodings]
    letters = world.fleet.take()
    [(worker_id, advice)] = letters
    assert worker_id == "w0"
    assert [each.encoding_id for each in advice.prefetches] == [root, prompt, message]
    assert dict(advice.uses).keys() >= {root, prompt, message}  # the worker keeps to these
    last = advice.prefetches[-1]
    assert [spec.encoding_id for spec in last.specs] == [root, prompt, message]
    assert last.compute
    assert last.sources == ()
    order = world.fleet.predicted[0]
    assert order.call.view == run.look().readers[0].spot.view
    assert order.call.rank == 3
    world.look()
    assert world.fleet.ordered() == []  # under way
    world.fleet.put("w0", prompt)
    world.fleet.directory.drop("w0", "1")
    world.fleet.directory.begin("w0", "2")
    world.look()
    assert [each.encoding_id for _, each in world.fleet.ordered()] == [root, prompt, message]  # lost with the worker


def test_it_comes_from_where_it_is() -> None:
    world = World()
    world.fleet.goes_to = None
    run = world.begin(CHAIN)
    root, prompt, message = [each for each, _ in run.look().readers[0].encodings]
    world.fleet.put("w0", root)
    world.fleet.put("w0", prompt, tier=Tier.HOST)
    world.fleet.put("w1", prompt)
    world.fleet.put("w1", message, tier=Tier.DISK)
    world.fleet.goes_to = "w0"
    world.move(run)
    orders = {each.encoding_id: each for worker_id, each in world.fleet.ordered() if worker_id == "w0"}
    assert root not in orders
    assert orders[prompt].sources == ()  # its own host memory
    [source] = orders[message].sources
    assert (source.worker_id, source.epoch, source.encoding_id) == ("w1", "1", message)


def test_nothing_is_begun_early_where_it_would_drive_something_out() -> None:
    world = World()
    world.fleet.pages_free = 0
    run = world.begin("steps: [{step: slow, external: {tool: t}}, {step: review, agent: bob, read: [m, slow]}]")
    run.history.observe("w", "slow", "external", 30.0)
    world.foresight._history.observe("w", "slow", "external", 30.0)
    world.move(run)
    world.fleet.take()
    world.fleet.put("w0", "x")
    world.look(10.0)
    assert world.fleet.ordered() == []
    world.look(17.2)  # 0.8 s are left, of which 0.3 are for encoding
    assert len(world.fleet.ordered()) == 3


def test_what_a_branch_not_taken_would_have_read_is_cancelled() -> None:
    text = """
steps:
  - {step: draft, agent: ann, read: [m]}
  - {step: review, agent: bob, read: [n, draft], when: draft.text == "y"}
  - {step: wrap, agent: ann, read: [m, draft]}
"""
    world = World()
    run = world.begin(text)
    ordered = {each.encoding_id for _, each in world.fleet.ordered()}
    review = next(reader for reader in run.look().readers if reader.address == "review")
    only_there = {each for each, _ in review.encodings[1:]}
    assert only_there <= ordered
    run.queued = {"wrap"}
    world.move(run, "draft")  # it says "x"
    cancelled = {each for _, advice in world.fleet.take() for each in advice.cancelled}
    assert cancelled == only_there


# Sessions


def test_messages_of_open_sessions_will_be_read_nobody_knows_when() -> None:
    world = World()
    kept = ["a", "b"]
    world.foresight.keep("s-1", lambda: kept, dict)
    world.fleet.put("w0", "a")
    world.look()
    use = world.fleet.told()["w0"]["a"]
    assert use is not None
    assert use.in_s == UNKNOWN_S
    assert not use.fixed
    kept.append("c")
    world.foresight.moved("s-1")
    world.fleet.put("w1", "c")
    world.look()
    assert world.fleet.told().keys() == {"w1"}
    world.look(UNKNOWN_S)  # it does not come nearer
    assert world.fleet.told()["w0"]["a"].in_s == UNKNOWN_S
    world.foresight.end("s-1")
    world.look()
    assert world.fleet.told() == {"w0": {"a": None}, "w1": {"c": None}}
    assert world.fleet.ordered() == []


# Hints


def test_a_hint_is_told_prefetched_pinned_and_forgotten() -> None:
    world = World()
    chain = specs_of("^", "first", "second")
    _, first, second = [spec.encoding_id for spec in chain]
    world.fleet.put("w1", first, 5)
    world.foresight.hint("hint s/ann", {first: Use(1, 2.0), second: Use(1, 2.0)}, {first: 30.0}, chain, 60.0)
    world.look(0.5)
    letters = dict(world.fleet.take())
    assert dict(letters["w1"].uses) == {first: Use(1, 1.5)}
    assert letters["w1"].pins == ((first, 29.5),)
    assert [each.encoding_id for each in letters["w0"].prefetches] == [first, second]
    assert [source.worker_id for source in letters["w0"].prefetches[0].sources] == ["w1"]
    world.fleet.put("w0", first, 5)
    world.look()
    assert dict(world.fleet.take())["w0"].pins == ((first, 28.5),)
    world.look(60.0)
    letters = dict(world.fleet.take())
    assert dict(letters["w1"].uses) == {first: None}
    assert letters["w1"].pins == ((first, 0.0),)
    assert letters["w0"].cancelled == (second,)
    world.look()
    assert world.fleet.take() == []


def test_hints_of_two_agents_pin_for_the_longer_and_one_can_be_released() -> None:
    world = World(prefetch=False)
    chain = specs_of("one")
    [spec] = chain
    world.fleet.put("w0", spec.encoding_id)
    world.foresight.hint("hint s/ann", {spec.encoding_id: Use(1, 9.0)}, {spec.encoding_id: 30.0}, chain, 60.0)
    world.foresight.hint("hint t/ann", {spec.encoding_id: Use(0, 1.0)}, {spec.encoding_id: 50.0}, chain, 60.0)
    world.look(0.0)
    [(_, advice)] = world.fleet.take()
    assert advice.pins == ((spec.encoding_id, 50.0),)
    assert dict(advice.uses)[spec.encoding_id].in_s == 1.0
    world.foresight.forget("hint t/ann")
    world.look(0.0)
    [(_, advice)] = world.fleet.take()
    assert advice.pins == ((spec.encoding_id, 30.0),)
    assert dict(advice.uses)[spec.encoding_id].in_s == 9.0
    world.foresight.forget("hint s/ann")
    world.foresight.forget("hint nobody/ever")
    world.look(0.0)
    [(_, advice)] = world.fleet.take()
    assert advice.pins == ((spec.encoding_id, 0.0),)
    assert advice.uses == ((spec.encoding_id, None),)


def test_how_long_a_step_takes_is_learned() -> None:
    world = World()
    before = world.foresight.step_s
    world.foresight._history.observe("w", "draft", "generate", before + 100)
    assert world.foresight.step_s > before


# Turns


class Turns:
    """A foresight that runs by itself, on the real clock."""

    def __init__(self) -> None:
        self.fleet = FakeFleet()
        self.foresight = Foresight(self.fleet, foresight_of(self.fleet)._likelihoods, seconds(draft=1.0))
        self.run = played(CHAIN, now_s=time.monotonic())

    async def __aenter__(self) -> Turns:
        self.foresight.start()
        self.foresight.begin("wf", self.run.run, self.run.book, self.run, 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.foresight.stop()

    async def until(self, condition) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


@asynchronous
async def test_it_looks_by_itself_when_something_moves_and_not_otherwise() -> None:
    async with Turns() as turns:
        looks = []
        look = turns.foresight.look
        turns.foresight.look = lambda: looks.append(look())  # type: ignore[method-assign]
        await turns.until(lambda: turns.foresight.uses("wf"))
        await asyncio.sleep(0.1)
        few = len(looks)
        assert few <= 3
        for _ in range(100):
            turns.foresight.moved("wf")
            await asyncio.sleep(0)
        await turns.until(lambda: len(looks) > few)
        assert len(looks) <= few + 2  # a hundred moves, one look or two


@asynchronous
async def test_a_large_run_is_prepared_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.cluster.outlook.LARGE", 2)
    async with Turns() as turns:
        began_in: list[int] = []
        begin = turns.run.run.begin_look_ahead

        def noted(likelihoods) -> None:
            began_in.append(threading.get_ident())
            begin(likelihoods)

        turns.run.run.begin_look_ahead = noted  # type: ignore[method-assign]
        await turns.until(lambda: turns.foresight.uses("wf"))
        [thread] = began_in
        assert thread != threading.get_ident()


@asynchronous
async def test_a_run_that_takes_long_to_look_at_is_looked_at_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def slow(self, now_s):
        looks.append(time.monotonic())
        time.sleep(0.006)
        return Seen({})

    monkeypatch.setattr(RunForecast, "look", slow)
    async with Turns() as turns:
        await turns.until(lambda: looks)
        began = time.monotonic()
        while time.monotonic() < began + 1.0:
            turns.foresight.moved("wf")
            await asyncio.sleep(0.002)
        assert len(looks) <= 2 + 1.0 / (0.006 / 0.01)


@asynchronous
async def test_it_stops() -> None:
    async with Turns() as turns:
        await turns.foresight.stop()
        assert not turns.foresight._tasks
