"""Long texts: refused before anything is made of them, and made into tokens beside the event loop, each once."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from executor_rig import FAST, until
from executor_workflows import tool_step
from journal_rig import MemoryStore, server
from scripted_engine import MAX_CONTEXT, CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.actors.calls import Sampling
from laban.actors.errors import InvalidInput, NotFound, OutOfRange
from laban.cluster import course, texts
from laban.cluster.dispatch import Dispatcher
from laban.cluster.journal_records import Line
from laban.cluster.messages import Language
from laban.cluster.moves import Answered, move_from_json, move_to_json
from laban.cluster.sessions import Sessions

LONG = "a long text " * 20
TOO_LONG = "a text that is too long " * 100  # for the context, though not surely so by its characters


@pytest.fixture
def framed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The texts that were made into tokens, and whether the event loop waited for that."""
    found: list[tuple[str, bool]] = []
    plain = CharFraming.header

    def header(self, role, name=None, *, first=False, prefill=""):
        in_loop = threading.current_thread() is threading.main_thread()
        if len(prefill) > 100:
            found.append((prefill, in_loop))
            time.sleep(0.0 if in_loop else 0.05)
        return plain(self, role, name, first=first, prefill=prefill)

    monkeypatch.setattr(CharFraming, "header", header)
    monkeypatch.setattr(texts, "LONG_TEXT", 100)
    monkeypatch.setattr(course, "LONG_TEXT", 100)
    return found


def answers(store: MemoryStore) -> list[Answered]:
    moves = [move_from_json(write.move) for write in store.writes if isinstance(write, Line)]
    return [move for move in moves if isinstance(move, Answered)]


def test_an_answer_that_will_not_do_is_never_written_down(framed: list[tuple[str, bool]]) -> None:
    async def main() -> None:
        async with server(MemoryStore()) as run:
            workflow_id = (await run.submit(tool_step())).workflow_id
            complete = run.executor.complete_step
            await until(lambda: run.executor.get(workflow_id).steps[0].state == "ready")
            for _ in range(2):
                with pytest.raises(OutOfRange, match="text: the text needs up to"):
                    await complete(workflow_id, "tests", TOO_LONG)
            assert framed == [(TOO_LONG, False)] * 2
            with pytest.raises(OutOfRange, match="text: 16001 characters, expected at most 16000"):
                await complete(workflow_id, "tests", "a" * 16_001)
            with pytest.raises(InvalidInput, match="text: 4000001 characters, expected at most 4000000"):
                await complete(workflow_id, "tests", "a" * 4_000_001)
            with pytest.raises(InvalidInput, match="output: 4000002 characters, expected at most 4000000"):
                await complete(workflow_id, "tests", output=["a" * 3_999_998])
            with pytest.raises(InvalidInput, match="message: 10001 characters, expected at most 10000"):
                await run.executor.fail_step(workflow_id, "tests", "a" * 10_001)
            assert len(framed) == 2
            assert answers(run.store) == []
            await complete(workflow_id, "tests", LONG)
            assert framed[2:] == [(LONG, False)]  # once, and not while it was applied
            assert [move.text for move in answers(run.store)] == [LONG]

    asyncio.run(main())


def test_what_another_version_wrote_down_does_not_hold_the_loop_up(framed: list[tuple[str, bool]]) -> None:
    async def main() -> None:
        async with server(MemoryStore()) as first:
            workflow_id = (await first.submit(tool_step(more="timeout_s: 0.09"))).workflow_id
            await first.executor.lease_step(["run_tests"])
            await first.executor.complete_step(workflow_id, "tests", LONG)
            lines = [write for write in first.store.writes if isinstance(write, Line)]
            place = next(n for n, line in enumerate(lines) if '"answered"' in line.move)
            right = move_from_json(lines[place].move)
        for text in (TOO_LONG, "a" * 20_000):
            bad = replace(lines[place], move=move_to_json(replace(right, text=text)))
            later = [replace(line, number=line.number + 1, applied=line.applied + 1) for line in lines[place:]]
            later[0] = replace(later[0], event=lines[place].event)
            writes = [each for each in first.store.writes if not isinstance(each, Line)][:1]
            framed.clear()
            async with server(MemoryStore([*writes, *lines[:place], bad, *later])) as again:
                assert (await again.events(workflow_id))[-1].workflow_state == "succeeded"
                assert again.executor.get(workflow_id).steps[0].text == LONG
                assert framed[-1] == (LONG, False)
                assert not any(in_loop for _, in_loop in framed)
                assert not [w for w in again.store.writes if isinstance(w, Line) and '"timed_out"' in w.move]

    asyncio.run(main())


def test_calls_of_a_session_begin_in_the_order_in_which_they_came(framed: list[tuple[str, bool]]) -> None:
    async def main() -> None:
        worker = LoopWorker(ScriptedEngine())
        dispatcher = Dispatcher([worker], supervisor=LoopSupervisor(), limits=FAST)
        language = Language(CharFraming(), CharTokenizer(), "model/", MAX_CONTEXT)
        sessions = Sessions(dispatcher, lambda tenant, model="": language)
        dispatcher.start()
        try:
            session_id = sessions.open().session_id

            async def decode(prefill: str) -> str:
                sampling = Sampling(max_tokens=5)
                items = [each async for each in sessions.decode(session_id, sampling=sampling, prefill=prefill)]
                return items[-1].message_id

            async def prefill(text: str) -> str:
                return (await sessions.prefill(session_id, "user", text=text)).message_id

            calls = [prefill(LONG), prefill("short"), decode(LONG), decode("short"), prefill("last")]
            assert await asyncio.gather(*calls) == ["m1", "m2", "m3", "m4", "m5"]
            assert framed == [(LONG, False)] * 2
            with pytest.raises(OutOfRange, match="text: 16001 characters, expected at most 16000"):
                await prefill("a" * 16_001)
            with pytest.raises(OutOfRange, match="prefill: 16001 characters, expected at most 16000"):
                await decode("a" * 16_001)
            assert len(framed) == 2
            closing = asyncio.create_task(prefill(LONG))
            await asyncio.sleep(0.01)
            sessions.close(session_id)
            with pytest.raises(NotFound, match="no such session"):
                await closing
        finally:
            await dispatcher.stop()

    asyncio.run(main())
