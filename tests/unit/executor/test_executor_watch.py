"""Watches of workflows: numbered events, text so far, slow readers."""

from __future__ import annotations

import asyncio

import pytest
from executor_rig import rig
from executor_workflows import CHAIN, DEBATE, asynchronous, one_step

from laban.actors.errors import Exhausted, InvalidInput
from laban.cluster.records import Event, TokenChunk


@asynchronous
async def test_events_are_numbered_and_chunks_add_up():
    async with rig() as r:
        record = await r.submit(DEBATE)
        items = await r.items(record.workflow_id)
        events = [item for item in items if isinstance(item, Event)]
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert (events[0].workflow_state, events[-1].workflow_state) == ("running", "succeeded")
        assert r.executor.get(record.workflow_id).last_event == len(events)
        for step in r.executor.get(record.workflow_id).steps:
            own = [e for e in events if (e.address or (e.result and e.result.address)) == step.address]
            assert [e.step_state or e.result.state for e in own] == ["ready", "running", "succeeded"]
            chunks = [c for c in items if isinstance(c, TokenChunk) and c.address == step.address]
            assert "".join(chunk.text for chunk in chunks) == step.text
            assert sum((chunk.token_ids for chunk in chunks), ()) == step.token_ids
            assert [chunk.index for chunk in chunks] == sorted({chunk.index for chunk in chunks})
            assert items.index(own[1]) < items.index(chunks[0]) < items.index(chunks[-1]) < items.index(own[2])


@asynchronous
async def test_a_watch_that_resumes_gets_the_text_so_far_in_one_chunk():
    async with rig() as r:
        record = await r.submit(one_step())
        first = r.executor.watch(record.workflow_id)
        seen = []
        while not seen or "says 1"[:5] not in "".join(c.text for c in seen if isinstance(c, TokenChunk)):
            seen.append(await anext(first))
        r.worker.paused = True
        await first.aclose()
        last = max(item.number for item in seen if isinstance(item, Event))
        again = r.executor.watch(record.workflow_id, last)
        chunk = await anext(again)
        assert isinstance(chunk, TokenChunk)
        assert chunk.index == 0
        assert chunk.text.startswith("says")
        r.worker.resume()
        rest = [item async for item in again]
        text = chunk.text + "".join(c.text for c in rest if isinstance(c, TokenChunk))
        assert text == r.executor.get(record.workflow_id).steps[0].text
        numbers = [item.number for item in rest if isinstance(item, Event)]
        assert numbers == list(range(last + 1, last + 1 + len(numbers)))


@asynchronous
async def test_a_watch_of_an_ended_workflow_replays_its_events_alone():
    async with rig() as r:
        record = await r.run(CHAIN, {"question": "Why?"})
        items = await r.items(record.workflow_id)
        assert all(isinstance(item, Event) for item in items)
        assert await r.items(record.workflow_id, len(items)) == []
        with pytest.raises(InvalidInput, match="after_event"):
            await r.items(record.workflow_id, len(items) + 1)


@asynchronous
async def test_a_slow_watcher_holds_nothing_up_and_misses_no_event():
    async with rig() as r:
        record = await r.submit(DEBATE)
        slow = r.executor.watch(record.workflow_id)
        items = [await anext(slow)]
        await r.end(record.workflow_id)
        items += [item async for item in slow]
        numbers = [item.number for item in items if isinstance(item, Event)]
        assert numbers == list(range(1, len(numbers) + 1))
        for step in r.executor.get(record.workflow_id).steps:
            chunks = [c for c in items if isinstance(c, TokenChunk) and c.address == step.address]
            assert len(chunks) == 1, "what it missed comes as one chunk"
            assert chunks[0].text == step.text


@asynchronous
async def test_stopping_ends_watches():
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(one_step())
        watching = asyncio.create_task(r.items(record.workflow_id))
        await asyncio.sleep(0)
        await r.executor.stop()
        assert (await watching)[-1].workflow_state == "cancelled"


@asynchronous
async def test_too_many_watchers():
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(one_step())
        watches = [r.executor.watch(record.workflow_id) for _ in range(65)]
        for watch in watches[:64]:
            await anext(watch)
        with pytest.raises(Exhausted):
            await anext(watches[64])
        for watch in watches:
            await watch.aclose()
        await anext(r.executor.watch(record.workflow_id))
        await r.executor.cancel(record.workflow_id)
