"""A worker's line: orders and reports over a socket, in this process."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import threading
from contextlib import aclosing, asynccontextmanager

import pytest
from scripted_engine import ScriptedEngine, encode

from laban.actors import line as module
from laban.actors.calls import Advice, Call, CallFailed, CallFinished, CallTokens, Sampling
from laban.actors.line import Line, LineFailure, LineServer
from laban.actors.worker import WorkerLoop
from laban.kvstore.encodings import EMPTY_VIEW


def a_call(call_id: str, header: str = "[x]", text: str = "0123456789") -> Call:
    return Call(call_id, "model/", EMPTY_VIEW, 0, encode(header), (), Sampling(len(text), forced=encode(text)))


@asynccontextmanager
async def served(engine=ScriptedEngine):
    loop = WorkerLoop(engine)
    server = LineServer(loop)
    line = await Line.connect(server.address)
    assert line is not None
    try:
        async with asyncio.timeout(30):
            yield loop, server, line
    finally:
        line.close()
        server.close()
        loop.stop()


async def collect(line: Line, count: int, pause_s: float = 0.0) -> tuple[dict[str, list], int]:
    """Events by call until `count` calls have ended, and in how many reports they came."""
    events: dict[str, list] = {}
    ended = received = 0
    async with aclosing(line.reports()) as reports:
        async for report in reports:
            received += 1
            assert not isinstance(report, LineFailure), report
            for event in report.events:
                events.setdefault(event.call_id, []).append(event)
                ended += isinstance(event, (CallFinished, CallFailed))
            if ended == count:
                return events, received
            await asyncio.sleep(pause_s)
    raise AssertionError("the reports ended early")


def told(events: list) -> tuple[str, object]:
    """What came in pieces, and how it ended: pieces are merged as they may be, the end says it all."""
    return "".join(event.text for event in events if isinstance(event, CallTokens)), events[-1]


def test_what_goes_over_a_line_is_what_goes_without():
    numbers = random.Random(7)
    texts = ["".join(numbers.choices("abcdefgh", k=numbers.randint(1, 300))) for _ in range(30)]
    calls = [a_call(f"c{at}", "[FAIL]" if at % 7 == 3 else "[x]", text) for at, text in enumerate(texts)]
    plain, expected = WorkerLoop(ScriptedEngine), {}
    plain.submit(calls)
    ended = 0
    for report in plain.reports():
        for event in report.events:
            expected.setdefault(event.call_id, []).append(event)
            ended += isinstance(event, (CallFinished, CallFailed))
        if ended == len(calls):
            break
    plain.stop()

    async def scenario():
        async with served() as (_, _, line):
            begin = 0
            while begin < len(calls):
                end = begin + numbers.randint(1, 5)
                line.send("submit", tuple(calls[begin:end]))
                begin = end
            return (await collect(line, len(calls)))[0]

    found = asyncio.run(scenario())
    assert {key: told(events) for key, events in found.items()} == {
        key: told(events) for key, events in expected.items()
    }


def test_orders_are_taken_as_they_were_given_however_large_they_are():
    heard: list = []

    class Listening(WorkerLoop):
        def submit(self, calls):
            heard.append(tuple(call.call_id for call in calls))
            super().submit(calls)

        def abort(self, call_ids):
            heard.append(call_ids)
            super().abort(call_ids)

        def advise(self, advice):
            heard.append(advice)
            super().advise(advice)

    async def scenario():
        loop = Listening(ScriptedEngine)
        server = LineServer(loop)
        line = await Line.connect(server.address)
        advice, large = Advice(cancelled=("a",)), "y" * 400_000
        line.send("submit", (a_call("large", large),))
        line.send("abort", ("large",))
        line.send("advise", advice)
        line.send("submit", (a_call("small"),))
        async with asyncio.timeout(30):
            events, _ = await collect(line, 1)
        assert isinstance(events["small"][-1], CallFinished)
        assert heard == [("large",), ("large",), advice, ("small",)]
        line.close()
        server.close()
        loop.stop()

    asyncio.run(scenario())


def test_a_slow_reader_gets_everything_in_few_reports():
    async def scenario():
        async with served() as (_, _, line):
            text = "z" * 2000
            line.send("submit", (a_call("a", text=text),))
            events, received = await collect(line, 1, pause_s=0.1)
            assert told(events["a"])[0] == text
            assert received < 100

    asyncio.run(scenario())


def test_a_new_reader_displaces_the_old_and_goes_on_where_it_was():
    async def scenario():
        async with served() as (_, _, line):
            old = line.reports()
            waiting = asyncio.ensure_future(anext(old, None))
            await asyncio.sleep(0.01)
            line.send("submit", (a_call("a", header="[SLOW]", text="abc"),))
            first = await waiting
            assert first.sequence == 1
            waiting = asyncio.ensure_future(anext(old, None))
            new = line.reports()
            last = first
            while not any(isinstance(event, CallFinished) for event in last.events):
                following = await anext(new)
                assert following.sequence == last.sequence + 1
                last = following
            assert await waiting is None

    asyncio.run(scenario())


def test_the_newest_connection_has_the_reports():
    async def scenario():
        async with served() as (_, server, first):
            waiting = asyncio.ensure_future(anext(first.reports(), None))
            await asyncio.sleep(0.05)
            second = await Line.connect(server.address)
            second.send("submit", (a_call("a", header="[SLOW]", text="xy"),))
            events, _ = await collect(second, 1)
            assert isinstance(events["a"][-1], CallFinished)
            assert await waiting is None
            assert not first.is_open
            second.close()

    asyncio.run(scenario())


class Cut(ScriptedEngine):
    """Fails as a shard does that another one does not answer."""

    def step(self):
        raise TimeoutError("the script says so")


@pytest.mark.parametrize("how", ["engine", "cut", "order", "stop"])
def test_what_goes_wrong_ends_the_line(how: str):
    async def scenario():
        async with served(Cut if how == "cut" else ScriptedEngine) as (loop, _, line):
            if how in ("engine", "cut"):
                line.send("submit", (a_call("a", header="[BOOM]"),))
            elif how == "order":
                line.send("submit", 7)
            else:
                line.send("submit", (a_call("a", header="[SLOW]", text="x" * 1000),))
                await asyncio.to_thread(loop.stop)
            came = [report async for report in line.reports()]
            failed = [report for report in came if isinstance(report, LineFailure)]
            assert len(failed) == (how in ("engine", "cut"))
            assert not failed or "the script says so" in failed[0].reason
            assert not line.is_open
            line.send("submit", (a_call("b"),))  # nobody hears of it, and nothing is raised

    asyncio.run(scenario())


def test_what_cannot_be_pickled_is_the_senders_error_and_the_line_goes_on():
    async def scenario():
        async with served() as (_, _, line):
            with pytest.raises(Exception, match=r"pickle|lambda"):
                line.send("submit", (lambda: None,))
            line.send("submit", (a_call("a"),))
            events, _ = await collect(line, 1)
            assert isinstance(events["a"][-1], CallFinished)

    asyncio.run(scenario())


def test_nobody_else_is_let_in(monkeypatch):
    async def scenario():
        assert await Line.connect("\0laban-nobody-is-here") is None
        async with served() as (_, server, _):
            monkeypatch.setattr(module.os, "getuid", lambda: 12345)
            assert await Line.connect(server.address) is None  # who connects looks, too
            monkeypatch.setattr(module, "_is_own", lambda connection: False)
            reader, writer = await asyncio.open_unix_connection(server.address)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_who_comes_when_no_more_are_taken_is_refused(monkeypatch):
    full, accept = threading.Event(), socket.socket.accept

    def accepted(self):
        if full.is_set():
            raise OSError(errno.EMFILE, "too many open files")
        return accept(self)

    async def scenario():
        monkeypatch.setattr(socket.socket, "accept", accepted)
        async with served() as (_, server, _):
            full.set()
            last = await Line.connect(server.address)  # was waited for already
            for _ in range(100):
                again = await Line.connect(server.address)
                if again is None:
                    break
                again.close()
                await asyncio.sleep(0.05)
            assert again is None
            last.close()

    asyncio.run(scenario())
