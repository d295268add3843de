"""Hints of sessions: which encodings they come to, what is clipped and ignored, and that they are forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from executor_rig import FAST
from scripted_engine import MAX_CONTEXT, CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.actors.calls import Sampling
from laban.actors.errors import NotFound
from laban.cluster.dispatch import Dispatcher
from laban.cluster.messages import Language
from laban.cluster.records import Hint, HintOutcome, MessageRecord, SessionPlacement
from laban.cluster.session_hints import HintLimits
from laban.cluster.sessions import SessionLimits, Sessions
from laban.kvstore.encodings import EncodingId, EncodingSpec, dependencies, flatten
from laban.kvstore.uses import Use


@dataclass
class Taker:
    """Notes what it is told."""

    step_s: float = 2.0
    uses: dict[str, dict[EncodingId, Use]] = field(default_factory=dict)
    pins: dict[str, dict[EncodingId, float]] = field(default_factory=dict)
    specs: dict[str, tuple[EncodingSpec, ...]] = field(default_factory=dict)
    ttls: dict[str, float] = field(default_factory=dict)

    def hint(
        self,
        source: str,
        uses: Mapping[EncodingId, Use],
        pins: Mapping[EncodingId, float],
        specs: Sequence[EncodingSpec],
        ttl_s: float,
    ) -> None:
        self.uses[source], self.pins[source], self.specs[source] = dict(uses), dict(pins), tuple(specs)
        self.ttls[source] = ttl_s

    def forget(self, source: str) -> None:
        for said in (self.uses, self.pins, self.specs, self.ttls):
            said.pop(source, None)


class World:
    def __init__(self, taker: Taker | None) -> None:
        self.now = 1000.0
        self.worker = LoopWorker(ScriptedEngine())
        self.dispatcher = Dispatcher([self.worker], supervisor=LoopSupervisor(), limits=FAST)

        def language(tenant: str, model: str = "") -> Language:
            return Language(CharFraming(), CharTokenizer(), f"model/{tenant}", MAX_CONTEXT)

        self.sessions = Sessions(
            self.dispatcher, language, limits=SessionLimits(max_ttl_s=1e6), hint_taker=taker, clock=lambda: self.now
        )
        self.session_id = self.sessions.open(1e5).session_id

    async def prefill(self, text: str, *view: str) -> MessageRecord:
        placements = [SessionPlacement(message_id) for message_id in view]
        return await self.sessions.prefill(self.session_id, "user", text=text, view=placements)

    def hint(self, agent: str, *reads: str, ttl_s: float | None = None, **said) -> HintOutcome:
        hint = Hint(agent, tuple(SessionPlacement(read) for read in reads), **said)
        [outcome] = self.sessions.hint(self.session_id, [hint], ttl_s)
        assert outcome.agent == agent
        return outcome

    def source(self, agent: str) -> str:
        return f"hint {self.session_id}/{agent}"


def play(scenario: Callable[[World, Taker], Awaitable[None]]) -> None:
    async def main() -> None:
        taker = Taker()
        world = World(taker)
        world.dispatcher.start()
        try:
            await scenario(world, taker)
        finally:
            await world.dispatcher.stop()

    asyncio.run(main())


@pytest.mark.parametrize("fidelity", ["exact", "direct"])
def test_a_hint_names_the_encodings_that_the_call_will_read(fidelity) -> None:
    async def scenario(world: World, taker: Taker) -> None:
        first = await world.prefill("one")
        second = await world.prefill("twofold")  # encoded apart from the first, so an exact read encodes it anew
        ids = (first.message_id, second.message_id)
        outcome = world.hint("ann", *ids, steps=3, likelihood=0.5, fidelity=fidelity)
        assert outcome == HintOutcome("ann", "accepted", "", 2, first.num_tokens + second.num_tokens, 0.0, 60.0)
        [(source, uses)] = taker.uses.items()
        assert source == world.source("ann")
        assert set(uses.values()) == {Use(3, 6.0, 0.5)}
        view = [SessionPlacement(message_id) for message_id in ids]
        async for _ in world.sessions.decode(world.session_id, sampling=Sampling(4), view=view, fidelity=fidelity):
            continue
        call = world.worker.engine.calls[-1]
        specs = {spec.encoding_id: spec for spec in call.specs}
        assert list(uses) == [placed.encoding_id for placed in flatten(call.view, specs)][1:]  # all but the root
        told = [spec.encoding_id for spec in taker.specs[source]]
        assert set(uses) <= set(told)
        for number, spec in enumerate(taker.specs[source]):
            assert set(dependencies(spec.view)) <= set(told[:number])

    play(scenario)


def test_steps_and_seconds_are_worked_out_from_each_other() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        message = (await world.prefill("one")).message_id
        for said, use in (
            ({}, Use(0, 0.0)),
            ({"steps": 4}, Use(4, 8.0)),
            ({"in_s": 7.0}, Use(4, 7.0)),
            ({"steps": 1, "in_s": 30.0}, Use(1, 30.0)),
        ):
            assert world.hint("ann", message, **said).status == "accepted"
            assert set(taker.uses[world.source("ann")].values()) == {use}, said

    play(scenario)


def test_a_hint_replaces_what_was_said_of_its_agent() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        one, two = [(await world.prefill(text)).message_id for text in ("one", "two")]
        world.hint("ann", one, pin_s=50)
        world.hint("bob", one)
        before = taker.uses[world.source("ann")]
        assert world.hint("ann", one, pin_s=50) == world.hint("ann", one, pin_s=50)
        assert taker.uses[world.source("ann")] == before
        world.hint("ann", two)
        assert not set(taker.uses[world.source("ann")]) & set(before)
        assert taker.pins[world.source("ann")] == {}
        assert world.hint("ann") == HintOutcome("ann", "accepted")  # reads nothing any more
        assert list(taker.uses) == [world.source("bob")]

    play(scenario)


def test_hints_are_released_one_by_one_and_with_their_session() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        message = (await world.prefill("one")).message_id
        for agent in ("ann", "bob", "cleo"):
            world.hint(agent, message)
        assert world.sessions.release_hints(world.session_id, ["ann", "nobody"]) == 1
        assert world.sessions.release_hints(world.session_id, ["ann"]) == 0
        assert list(taker.uses) == [world.source("bob"), world.source("cleo")]
        other = world.sessions.open().session_id
        assert world.sessions.release_hints(other, everything=True) == 0
        world.sessions.close(world.session_id)
        assert taker.uses == {}
        with pytest.raises(NotFound):
            world.hint("ann", message)
        with pytest.raises(NotFound):
            world.sessions.release_hints(world.session_id)

    play(scenario)


def test_hints_expire() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        message = (await world.prefill("one")).message_id
        assert world.hint("ann", message, in_s=100.0).ttl_s == 200
        assert world.hint("bob", message, pin_s=90.0).ttl_s == 90
        assert world.hint("cleo", message, ttl_s=5.0).ttl_s == 5
        assert taker.ttls == {world.source("ann"): 200, world.source("bob"): 90, world.source("cleo"): 5}
        world.now += 6
        assert world.sessions.release_hints(world.session_id, everything=True) == 2

    play(scenario)


def test_what_is_too_much_is_clipped() -> None:
    limits = HintLimits()

    async def scenario(world: World, taker: Taker) -> None:
        message = (await world.prefill("one")).message_id
        outcome = world.hint("ann", message, pin_s=10_000.0, in_s=1e9, ttl_s=1e6)
        assert (outcome.status, outcome.pin_s, outcome.ttl_s) == ("clipped", limits.max_pin_s, limits.max_ttl_s)
        assert outcome.reason == (
            "uses are foreseen 86400 s ahead at most; a pin lasts 600 s at most; a hint lasts 3600 s at most"
        )
        assert set(taker.pins[world.source("ann")].values()) == {limits.max_pin_s}
        assert {use.in_s for use in taker.uses[world.source("ann")].values()} == {limits.max_in_s}
        outcome = world.hint("ann", message, pin_s=50.0, ttl_s=20.0)
        assert (outcome.status, outcome.reason) == ("clipped", "a pin ends with its hint, after 20 s")
        assert outcome.pin_s == 20

    play(scenario)


def test_pins_take_a_part_of_the_pool_and_no_more() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        room = world.worker.info.pool_tokens // 2
        full = [await world.prefill(letter * 1500) for letter in "abcde"]
        ids = [message.message_id for message in full]
        direct = {"fidelity": "direct", "layout": "as_encoded"}
        assert world.hint("ann", *ids, pin_s=30, **direct).status == "accepted"
        assert world.hint("bob", *ids, pin_s=60, **direct).status == "accepted"  # what is pinned twice counts once
        other = await world.prefill("y" * 1500)
        total = sum(message.num_tokens for message in (*full, other))
        assert total > room
        outcome = world.hint("cleo", other.message_id, pin_s=30)
        assert outcome.reason == f"not pinned: {total} tokens would be, expected at most {room}"
        assert (outcome.status, outcome.pin_s, outcome.num_reads) == ("clipped", 0.0, 1)
        assert world.source("cleo") in taker.uses  # the rest of it holds
        world.now += 59
        assert world.hint("cleo", other.message_id, pin_s=30).status == "clipped"
        world.now += 2
        assert world.hint("cleo", other.message_id, pin_s=30, ttl_s=500).status == "accepted"
        assert world.hint("dora", *ids, pin_s=30, **direct).status == "clipped"
        world.now += 31  # that pin is over, its hint is not
        assert world.hint("dora", *ids, pin_s=30, **direct).status == "accepted"

    play(scenario)


def test_messages_that_are_not_there_are_left_out() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        one, two = [await world.prefill(text) for text in ("one", "two")]
        reads = (one.message_id, "m99", two.message_id)
        outcome = world.hint("ann", *reads, fidelity="direct")
        assert (outcome.status, outcome.num_reads) == ("clipped", 2)
        assert outcome.reason == "the session has no message m99"
        outcome = world.hint("ann", *reads)
        assert (outcome.status, outcome.num_reads, outcome.num_tokens) == ("clipped", 1, one.num_tokens)
        assert outcome.reason == "the session has no message m99, nor exact encodings of what comes after it"
        assert world.hint("ann", one.message_id, "m99").reason == "the session has no message m99"
        outcome = world.hint("ann", "m98", "m99", fidelity="direct")
        assert (outcome.status, outcome.reason) == ("ignored", "the session has no message m98, m99")
        assert taker.uses == {}  # and what was said before is forgotten

    play(scenario)


def test_what_cannot_be_a_view_is_ignored() -> None:
    async def scenario(world: World, taker: Taker) -> None:
        one = await world.prefill("one")
        for placement, words in (
            (SessionPlacement(one.message_id, 10**6), "within the model's context"),
            (SessionPlacement(one.message_id, begin=500), "view[0].begin"),
            (SessionPlacement(one.message_id, begin=2, end=1), "view[0].end"),
        ):
            [outcome] = world.sessions.hint(world.session_id, [Hint("ann", (placement,))])
            assert outcome.status == "ignored"
            assert words in outcome.reason
        many = tuple(SessionPlacement(one.message_id) for _ in range(5000))
        [outcome] = world.sessions.hint(world.session_id, [Hint("ann", many)])
        assert (outcome.status, outcome.reason) == ("ignored", "5000 reads, expected at most 4096")
        assert taker.uses == {}

    play(scenario)


def test_without_look_ahead_hints_are_ignored() -> None:
    async def main() -> None:
        world = World(None)
        assert world.hint("ann", "m1").reason == "this server does not look ahead"
        assert world.sessions.release_hints(world.session_id, everything=True) == 0

    asyncio.run(main())
