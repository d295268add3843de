"""Several Labans share a journal: each workflow is one's, and goes to another when that one ends, dies or is silent."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from executor_rig import until
from executor_workflows import CHAIN, asynchronous, tool_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_checks import SEED, SLOW, assert_sound, essence, finished, has_races, quickened, tools_of
from journal_rig import MemoryStore, server
from members_rig import LEASE_S, Cells, cells
from random_workflows import workflows

from laban.actors.errors import LabanError, NotFound, Unavailable
from laban.cluster.claims import KeyTaken
from laban.cluster.records import Event
from laban.cluster.workflow.diagnostics import WorkflowErrors

CHAIN_OF = CHAIN.replace("question: {type: string}", "question: {default: why}")


def texts(events: list[Event]) -> dict[str, str]:
    return {event.result.address: event.result.text for event in events if event.result is not None}


async def calm_texts() -> dict[str, str]:
    async with server(MemoryStore()) as calm:
        return texts(await calm.events((await calm.submit(SLOW)).workflow_id))


@asynchronous
async def test_who_dies_leaves_its_workflows_to_the_others_spread_among_them(tmp_path: Path) -> None:
    expected = await calm_texts()
    async with cells(tmp_path, 3) as made:
        first, *others = made.all
        for cell in made.all:
            cell.worker.paused = True
        ids = [(await first.submit(SLOW)).workflow_id for _ in range(6)]
        await until(lambda: all(len(cell.membership.members) == 3 for cell in made.all))
        known = {workflow_id: first.shown(workflow_id) for workflow_id in ids}
        await first.kill()
        await until(lambda: all(made.with_it(workflow_id)[-1] in others for workflow_id in ids))
        assert sorted(cell.executor.shelf.num_active for cell in others) == [3, 3]
        for cell in others:
            cell.worker.resume()
        for workflow_id in ids:
            events = await made.with_it(workflow_id)[-1].events(workflow_id)
            assert events[: len(known[workflow_id])] == known[workflow_id]
            assert_sound(events)
            assert texts(events) == expected


@asynchronous
async def test_one_that_was_silent_for_too_long_writes_nothing_when_it_wakes(tmp_path: Path) -> None:
    expected = await calm_texts()
    async with cells(tmp_path) as made:
        first, second = made.all
        first.worker.paused = True
        workflow_id = (await first.submit(SLOW)).workflow_id
        first.store.pause()
        first.worker.resume()  # what its worker brings waits to be written
        following = asyncio.create_task(made.follow_all(workflow_id))
        stale = asyncio.create_task(first.executor.cancel(workflow_id))
        await made.pass_time(LEASE_S + 3)
        await until(lambda: made.with_it(workflow_id)[-1] is second)
        first.store.wake()
        with pytest.raises(Unavailable, match="took this Laban for dead"):
            await stale
        await following
        events = [made.seen[number] for number in sorted(made.seen)]
        assert_sound(events)
        assert texts(events) == expected
        with pytest.raises(NotFound):
            first.executor.get(workflow_id)
        # It is one of them again.
        await until(lambda: len(second.membership.members) == 2 and first.membership.members)
        again = (await first.submit(SLOW)).workflow_id
        assert texts(await first.events(again)) == expected


@asynchronous
async def test_nobody_is_taken_for_dead_while_the_lease_runs_or_nobody_else_is_there(tmp_path: Path) -> None:
    async with cells(tmp_path) as made:
        first, second = made.all
        first.worker.paused = True
        workflow_id = (await first.submit(SLOW)).workflow_id
        first.store.pause()
        await made.pass_time(LEASE_S * 0.7)
        assert made.with_it(workflow_id) == [first]
        first.store.wake()
        await second.stop()
        first.store.pause()
        made.clock.now_s += 100 * LEASE_S
        first.store.wake()
        first.worker.resume()
        assert (await first.events(workflow_id))[-1].workflow_state == "succeeded"


@asynchronous
async def test_after_an_outage_for_all_nobody_takes_anything_over(tmp_path: Path) -> None:
    async with cells(tmp_path, 3) as made:
        ids = []
        for cell in made.all:
            cell.worker.paused = True
            ids.append((await cell.submit(SLOW)).workflow_id)
        for cell in made.all:
            cell.store.pause()
        made.clock.now_s += 5 * LEASE_S
        for cell in made.all:
            cell.store.wake()
        await made.pass_time(2 * LEASE_S)
        assert [made.with_it(workflow_id) for workflow_id in ids] == [[cell] for cell in made.all]


@asynchronous
async def test_who_ends_hands_over_at_once_what_runs_may_end_before(tmp_path: Path) -> None:
    expected = await calm_texts()
    async with cells(tmp_path) as made:
        first, second = made.all
        workflow_id = (await first.submit(SLOW)).workflow_id
        await until(lambda: first.executor.get(workflow_id).steps[1].state == "running")
        first.membership.show(state="ending")
        await first.executor.drain(20)
        with pytest.raises(Unavailable, match="the server is stopping"):
            await first.submit(SLOW)
        known = first.shown(workflow_id)
        assert [known[-1].address, known[-1].step_state] == ["c", "ready"]
        watching = asyncio.create_task(first.items(workflow_id, after=len(known)))
        await asyncio.sleep(0)
        first.executor.refuse()
        await first.stop()
        with pytest.raises(Unavailable):
            await watching
        await until(lambda: workflow_id in second.executor.shelf)
        events = await second.events(workflow_id)
        assert events[: len(known)] == known
        assert_sound(events)
        assert texts(events) == expected
        assert [call.call_id.split("/")[1] for call in second.worker.engine.calls] == ["c#1"]


@asynchronous
async def test_a_key_is_one_workflows_whoever_is_asked(tmp_path: Path) -> None:
    async with cells(tmp_path) as made:
        both = await asyncio.gather(
            *(cell.submit(CHAIN_OF, idempotency_key="k") for cell in made.all for _ in range(3)), return_exceptions=True
        )
        ids = {each.workflow_id for each in both if not isinstance(each, LabanError)}
        ids |= {each.workflow_id for each in both if isinstance(each, KeyTaken)}
        assert len(ids) == 1
        assert not any(isinstance(each, LabanError) and not isinstance(each, KeyTaken) for each in both)
        owner = made.with_it(ids.pop())
        assert len(owner) == 1
        other = next(cell for cell in made.all if cell not in owner)
        with pytest.raises(LabanError, match="with other content"):
            await other.submit(SLOW, idempotency_key="k")
        assert len(other.executor.intake.claims) == 0


@asynchronous
async def test_a_lease_of_a_step_does_not_outlive_its_owner(tmp_path: Path) -> None:
    async with cells(tmp_path) as made:
        first, second = made.all
        workflow_id = (await first.submit(tool_step())).workflow_id
        lease = await first.executor.lease_step(["run_tests"], handler="hal")
        assert lease.lease_id.startswith(first.store.member_id)
        await first.kill()
        await until(lambda: workflow_id in second.executor.shelf)
        with pytest.raises(LabanError, match="run out"):
            await second.executor.complete_step(workflow_id, "tests", "late", lease_id=lease.lease_id)
        again = await second.executor.lease_step(["run_tests"], handler="ida")
        assert again.attempt == lease.attempt + 1
        await second.executor.complete_step(workflow_id, "tests", "fine", lease_id=again.lease_id)
        assert (await second.events(workflow_id))[-1].workflow_state == "succeeded"


relaxed = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
strikes = st.tuples(st.sampled_from(["kill", "pause"]), st.integers(1, 12), st.booleans())


@relaxed
@given(workflows().map(quickened), st.lists(strikes, min_size=1, max_size=3))
def test_whoever_is_killed_or_paused_at_whatever_write_it_ends_alike(
    data: dict[str, Any], ills: list[tuple[str, int, bool]]
) -> None:
    tools = tools_of(data)

    async def strike(made: Cells, workflow_id: str) -> None:
        for kind, at, after in ills:
            owners = [cell for cell in made.with_it(workflow_id) if cell.is_up]
            if not owners:
                return
            store = owners[0].store
            store.strike, store.after, store.strike_at = kind, after, store.num_writes + at
            await until(lambda cell=owners[0], store=store: not cell.is_up or is_over(made, workflow_id))
            if owners[0].is_up:
                store.strike_at = None
                return
            if kind == "kill":
                await owners[0].kill()
                (await made.add()).handle(tools)
            else:
                await made.pass_time(LEASE_S + 3)
                store.wake()
            await until(lambda: any(cell.is_up for cell in made.with_it(workflow_id)) or is_over(made, workflow_id))

    def is_over(made: Cells, workflow_id: str) -> bool:
        return any(
            cell.executor.shelf.find(workflow_id).board.state != "running" for cell in made.with_it(workflow_id)
        ) or bool(made.seen and made.seen[max(made.seen)].workflow_state not in (None, "running"))

    def all_see_its_end(made: Cells, workflow_id: str) -> bool:
        living = [cell for cell in made.with_it(workflow_id) if not cell.store.is_dead]
        return all(cell.executor.get(workflow_id).state != "running" for cell in living)

    async def check(folder: Path) -> None:
        async with server(MemoryStore()) as calm:
            try:
                expected, _ = await finished(calm, (await calm.submit(data, overrides=SEED)).workflow_id, tools)
            except (WorkflowErrors, LabanError):
                return
        async with cells(folder) as made:
            for cell in made.all:
                cell.handle(tools)
            workflow_id = (await made.all[0].submit(data, overrides=SEED)).workflow_id
            following = asyncio.create_task(made.follow_all(workflow_id))
            await strike(made, workflow_id)
            await following
            events = [made.seen[number] for number in sorted(made.seen)]
            assert_sound(events)
            if not has_races(data):
                await until(lambda: all_see_its_end(made, workflow_id))  # who was silent may not have noticed yet
                owner = next(cell for cell in reversed(made.with_it(workflow_id)) if not cell.store.is_dead)
                assert essence(owner.executor.get(workflow_id)) == essence(expected)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))
