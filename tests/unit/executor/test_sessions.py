"""Choreography: sessions, messages under views, time to live, tenants."""

from __future__ import annotations

import asyncio
import functools

import pytest
from executor_rig import FAST, until
from scripted_engine import MAX_CONTEXT, CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine, decode

from laban.actors.calls import Sampling
from laban.actors.errors import Exhausted, InvalidInput, NotFound, OutOfRange, Unavailable
from laban.cluster.dispatch import Dispatcher
from laban.cluster.messages import Language
from laban.cluster.records import MessageRecord, SessionPlacement, TokenChunk
from laban.cluster.sessions import SessionLimits, Sessions
from laban.kvstore.encodings import flatten

SAMPLING = Sampling(max_tokens=50)
LIMITS = SessionLimits(default_ttl_s=10, max_ttl_s=100, max_sessions=3, max_messages=5, max_view=8)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.worker = LoopWorker(ScriptedEngine())
        self.dispatcher = Dispatcher([self.worker], supervisor=LoopSupervisor(), limits=FAST)

        def language(tenant: str, model: str = "") -> Language:
            return Language(CharFraming(), CharTokenizer(), f"model/{tenant}", MAX_CONTEXT)

        self.sessions = Sessions(self.dispatcher, language, limits=LIMITS, clock=lambda: self.now)

    async def prefill(self, session_id: str, text: str, *view: str, **options) -> MessageRecord:
        placements = [SessionPlacement(message_id) for message_id in view]
        return await self.sessions.prefill(session_id, "user", text=text, view=placements, **options)

    async def decode(self, session_id: str, *view: str, **options) -> tuple[list[TokenChunk], MessageRecord]:
        placements = [SessionPlacement(message_id) for message_id in view]
        items = [i async for i in self.sessions.decode(session_id, sampling=SAMPLING, view=placements, **options)]
        return items[:-1], items[-1]

    def last_view(self) -> list[tuple[int, str]]:
        call = self.worker.engine.calls[-1]
        specs = {spec.encoding_id: spec for spec in call.specs}
        return [
            (placed.position, decode(specs[placed.encoding_id].tokens[placed.begin : placed.end]))
            for placed in flatten(call.view, specs)
        ]


def in_a_world(test):
    @functools.wraps(test)
    def run():
        async def scenario():
            world = World()
            world.dispatcher.start()
            try:
                await test(world, world.sessions)
            finally:
                await world.dispatcher.stop()
            assert world.dispatcher.num_outstanding == 0

        asyncio.run(scenario())

    del run.__wrapped__  # its parameters are no fixtures
    return run


@in_a_world
async def test_prefill_then_decode(world, sessions):
    session_id = sessions.open().session_id
    task = await world.prefill(session_id, "Why?")
    assert (task.message_id, task.start, task.num_tokens) == ("m1", 1, len("[user:]Why?|"))
    assert (task.finish_reason, task.text, task.overlaps) == ("prefill", "", ())
    chunks, answer = await world.decode(session_id, "m1", name="bob", prefill="Well, ")
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert {(chunk.workflow_id, chunk.address) for chunk in chunks} == {("", "m2")}
    assert answer.token_ids == tuple(map(ord, answer.text))
    assert answer.start == 1 + task.num_tokens
    assert answer.num_tokens == len(f"[assistant:bob]Well, {answer.text}|")
    await world.decode(session_id, "m1", "m2")
    assert [text for _, text in world.last_view()] == ["^", "[user:]Why?|", f"[assistant:bob]Well, {answer.text}|"]
    assert world.worker.engine.calls[-1].view.placements == ()
    assert [message.message_id for message in sessions.get(session_id).messages] == ["m1", "m2", "m3"]


@in_a_world
async def test_views_with_positions_ranges_and_layouts(world, sessions):
    session_id = sessions.open().session_id
    for text in ("aaaa", "bb"):
        await world.prefill(session_id, text)
    view = [SessionPlacement("m2", position=50), SessionPlacement("m1", begin=7, end=9)]
    message = await sessions.prefill(session_id, "user", token_ids=[120, 121], view=view, fidelity="direct", position=3)
    assert world.last_view() == [(0, "^"), (50, "[user:]bb|"), (60, "aa")]
    assert (message.start, message.num_tokens) == (3, 2)
    both = [SessionPlacement("m1"), SessionPlacement("m2")]
    message = await sessions.prefill(
        session_id, "user", text="c", view=both, layout="as_encoded", fidelity="direct", position=0
    )
    assert world.last_view() == [(0, "^"), (1, "[user:]aaaa|"), (1, "[user:]bb|")]
    assert message.overlaps == (
        "the root and the new message share the positions 0 to 0",
        "view[0] and view[1] share the positions 1 to 10",
        "view[0] and the new message share the positions 1 to 8",
        "view[1] and the new message share the positions 1 to 8",
    )


@in_a_world
async def test_what_cannot_be_placed(world, sessions):
    session_id = sessions.open().session_id
    await world.prefill(session_id, "a")
    for view, error, field in (
        ([SessionPlacement("m1", position=-1)], OutOfRange, "view[0].position"),
        ([SessionPlacement("m1"), SessionPlacement("m1", position=MAX_CONTEXT)], OutOfRange, "view[1].position"),
        ([SessionPlacement("m9")], NotFound, "view[0].message_id"),
        ([SessionPlacement("m1", begin=5, end=5)], InvalidInput, "view[0].end"),
        ([SessionPlacement("m1")] * 9, InvalidInput, "view"),
    ):
        with pytest.raises(error) as raised:
            await sessions.prefill(session_id, "user", text="b", view=view)
        assert raised.value.field == field
    for options, error, field in (
        ({"text": "x" * MAX_CONTEXT}, OutOfRange, "text"),
        ({"token_ids": [1] * MAX_CONTEXT}, OutOfRange, "token_ids"),
        ({"token_ids": []}, InvalidInput, "token_ids"),
        ({"token_ids": [1, -1]}, InvalidInput, "token_ids[1]"),
        ({"token_ids": [CharTokenizer.vocab_size]}, InvalidInput, "token_ids[0]"),
        ({"text": "x", "token_ids": [1]}, InvalidInput, "content"),
        ({"text": "x", "position": -5}, OutOfRange, "position"),
    ):
        with pytest.raises(error) as raised:
            await sessions.prefill(session_id, "user", **options)
        assert raised.value.field == field
    with pytest.raises(InvalidInput):
        await sessions.prefill(session_id, "narrator", token_ids=[1], view=[SessionPlacement("m1")])
    with pytest.raises(OutOfRange, match="max_tokens") as raised:
        await anext(sessions.decode(session_id, sampling=Sampling(max_tokens=MAX_CONTEXT)))
    assert raised.value.field == "sampling.max_tokens"
    assert len(sessions.get(session_id).messages) == 1


@in_a_world
async def test_release_keeps_what_others_descend_from(world, sessions):
    session_id = sessions.open().session_id
    await world.prefill(session_id, "a")
    _, answer = await world.decode(session_id, "m1")
    with pytest.raises(NotFound) as raised:
        sessions.release(session_id, ["m2", "m7"])
    assert raised.value.field == "message_ids[1]"
    with pytest.raises(InvalidInput):
        sessions.release(session_id)
    assert sessions.release(session_id, ["m1"]) == 1
    with pytest.raises(NotFound):
        await world.decode(session_id, "m1")
    await world.decode(session_id, "m2", fidelity="direct")
    assert world.last_view()[-1][1] == f"[assistant:]{answer.text}|"
    # Its own view is still known, so it can be computed again wherever it is needed.
    assert any(decode(spec.tokens) == "[user:]a|" for spec in world.worker.engine.calls[-1].specs)
    assert sessions.release(session_id, everything=True) == 2
    assert sessions._sessions[session_id].book.specs == {}
    assert (await world.prefill(session_id, "again")).message_id == "m5"


@in_a_world
async def test_sessions_expire_since_their_last_use(world, sessions):
    session = sessions.open(20)
    assert session.expires_at == world.now + 20
    world.now += 19
    assert sessions.get(session.session_id).expires_at == world.now + 20
    world.now += 20
    with pytest.raises(NotFound):
        sessions.get(session.session_id)
    assert sessions.num_open == 0


@in_a_world
async def test_a_session_does_not_expire_under_a_running_call(world, sessions):
    session_id = sessions.open().session_id
    world.worker.paused = True
    running = asyncio.create_task(world.prefill(session_id, "a"))
    await until(lambda: world.worker.batches)
    world.now += 1000
    sessions.sweep()
    world.worker.resume()
    await running
    assert sessions.get(session_id).expires_at == world.now + 10


@in_a_world
async def test_foreign_unknown_and_closed_sessions_are_not_found(world, sessions):
    session_id = sessions.open(tenant="a").session_id
    for attempt in (
        lambda: sessions.get(session_id, tenant="b"),
        lambda: sessions.close(session_id),
        lambda: sessions.get("s-unknown", tenant="a"),
        lambda: sessions.release(session_id, ["m1"], tenant="b"),
    ):
        with pytest.raises(NotFound) as raised:
            attempt()
        assert raised.value.field == "session_id"
    with pytest.raises(NotFound):
        await world.prefill(session_id, "a", tenant="b")
    await world.prefill(session_id, "a", tenant="a")
    sessions.close(session_id, tenant="a")
    with pytest.raises(NotFound):
        sessions.get(session_id, tenant="a")


@in_a_world
async def test_limits(world, sessions):
    for ttl_s in (0, -1, 101, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="ttl"):
            sessions.open(ttl_s)
    ids = [sessions.open().session_id for _ in range(3)]
    with pytest.raises(Exhausted):
        sessions.open()
    for n in range(5):
        await world.prefill(ids[0], str(n))
    with pytest.raises(Exhausted):
        await world.prefill(ids[0], "one more")
    world.now += 60
    sessions.open()


@in_a_world
async def test_a_reader_that_leaves_aborts_the_call(world, sessions):
    session_id = sessions.open().session_id
    stream = sessions.decode(session_id, sampling=SAMPLING)
    await anext(stream)
    world.worker.paused = True
    await stream.aclose()
    assert world.worker.aborted == world.worker.batches[0]
    assert sessions.get(session_id).messages == ()
    world.worker.resume()
    await world.prefill(session_id, "next")


@in_a_world
async def test_closing_a_session_ends_its_running_calls(world, sessions):
    session_id = sessions.open().session_id
    world.worker.paused = True
    running = asyncio.create_task(world.prefill(session_id, "a"))
    await until(lambda: world.worker.batches)
    sessions.close(session_id)
    with pytest.raises(NotFound):
        await running
    assert world.worker.aborted == world.worker.batches[0]


@in_a_world
async def test_nothing_is_watched_for_a_session_that_has_ended_whatever_its_calls_do_then(world, sessions):
    """One of them finishes before its reader reads on, one leaves many encodings behind it, one is aborted."""
    watching = world.dispatcher.directory.watching
    session_id = sessions.open().session_id
    first, second = (sessions.decode(session_id, sampling=SAMPLING) for _ in range(2))
    await anext(first)
    await anext(second)
    await world.prefill(session_id, "a")
    assert watching.of(session_id)
    sessions.close(session_id)
    assert session_id not in watching.sources()
    await until(lambda: not world.dispatcher.num_outstanding)  # what was asked for has been generated
    assert session_id in watching.sources(), "or this shows nothing"
    for stream in (first, second):
        await stream.aclose()
    assert session_id not in watching.sources()
    watching.check_integrity()

    session_id = sessions.open().session_id
    left = sessions.decode(session_id, sampling=SAMPLING)
    await anext(left)
    world.worker.paused = True
    session = sessions._sessions[session_id]
    sessions.close(session_id)
    world.dispatcher.directory.watch_also(session_id, ["late"])
    session.book.specs |= {f"{number:032x}": None for number in range(100)}
    await left.aclose()
    assert session_id not in watching.sources()


@in_a_world
async def test_a_failed_call_raises_its_error_and_makes_no_message(world, sessions):
    session_id = sessions.open().session_id
    with pytest.raises(Exhausted, match="the script says so"):
        await world.decode(session_id, prefill="FAIL")
    with pytest.raises(Unavailable, match="3 attempts"):
        await world.decode(session_id, prefill="BOOM")
    assert sessions.get(session_id).messages == ()
    await world.decode(session_id)


@in_a_world
async def test_a_lost_worker_starts_the_text_anew(world, sessions):
    session_id = sessions.open().session_id
    stream = sessions.decode(session_id, sampling=SAMPLING)
    first = await anext(stream)
    assert (first.attempt, first.index) == (1, 0)
    world.worker.kill()
    items = [item async for item in stream]
    again = [item for item in items if isinstance(item, TokenChunk) and item.attempt == 2]
    assert again[0].index == 0
    assert "".join(chunk.text for chunk in again) == items[-1].text


@in_a_world
async def test_specs_that_nothing_needs_are_forgotten(world, sessions):
    session_id = sessions.open().session_id
    await world.prefill(session_id, "a")
    await world.prefill(session_id, "b")
    for n in range(100):
        view = [SessionPlacement("m1", position=n), SessionPlacement("m2")]
        with pytest.raises(Exhausted):
            await anext(sessions.decode(session_id, sampling=SAMPLING, view=view, prefill="FAIL"))
    assert len(sessions._sessions[session_id].book.specs) < 100
