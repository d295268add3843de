"""What attempts in vain cost is not lost: calls that fail, texts that will not do, workers that die, time limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from executor_rig import results, rig, until
from executor_workflows import asynchronous, tool_step
from flaky_calls import Flaky, assert_accounted, untimed, wild
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.cluster.usage import NO_USAGE, Usage

relaxed = settings(max_examples=20, deadline=None)
ONE = """
version: 1
name: one
messages: {task: "What?"}
steps: [{step: draft, read: [task], timeout_s: 0.3, retries: {max: 1}}]
"""


@relaxed
@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), max_size=3))
def test_steps_have_what_all_their_attempts_came_to(salt: int, kills: list[int]) -> None:
    """`kills`: after so many reports each a worker dies."""

    async def check() -> None:
        async with rig(2) as r:
            workflow_id = (await r.executor.intake.submit(wild(), {})).workflow_id
            for number, more in enumerate(kills):
                at = flaky.num_reports + more
                await until(lambda at=at: flaky.num_reports >= at or r.executor.get(workflow_id).finished_at)
                [*r.workers, *r.supervisor.made][number].kill()
            assert_accounted(await r.end(workflow_id), flaky)

    with Flaky(salt).in_force() as flaky:
        asyncio.run(check())


@asynchronous
async def test_a_call_that_takes_too_long_has_what_it_had_come_to() -> None:
    with Flaky(0, failing=0.0, unfit=0.0).in_force() as flaky:
        async with rig() as r:
            final = await r.run(ONE.replace("read:", "prefill: SLOW, read:"))
            draft = results(final)["draft"]
            assert (draft.state, draft.error.status, draft.attempt) == ("failed", "DEADLINE_EXCEEDED", 2)
            assert assert_accounted(final, flaky) == 1
            assert 0 < draft.earlier_attempts.tokens_generated < draft.total.tokens_generated < 2 * 13
            assert draft.earlier_attempts.wall_ms >= 300 <= draft.wall_ms - draft.earlier_attempts.wall_ms


@asynchronous
async def test_a_step_that_fails_for_good_has_its_last_attempts_numbers_and_its_time() -> None:
    with Flaky(0, failing=0.0, unfit=1.0).in_force() as flaky:
        async with rig() as r:
            final = await r.run(ONE.replace("max: 1", "max: 2, delay_s: 0.02"))
            draft = results(final)["draft"]
            assert (final.state, draft.state, draft.attempt, draft.text) == ("failed", "failed", 3, "")
            assert untimed(draft.earlier_attempts) == flaky.of("draft", [1, 2])
            assert untimed(Usage.sum(draft)) == replace(flaky.of("draft", [3]))
            assert draft.tokens_encoded > 0
            assert draft.wall_ms >= 60 > 20 <= draft.earlier_attempts.wall_ms <= draft.wall_ms


@asynchronous
async def test_tries_of_a_tool_take_time_and_no_tokens() -> None:
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(more="retries: 1"))).workflow_id
        await asyncio.sleep(0.02)
        await r.executor.fail_step(workflow_id, "tests", "broken")
        await r.executor.complete_step(workflow_id, "tests", "fine")
        step = results(await r.end(workflow_id))["tests"]
        assert (step.attempt, untimed(step.earlier_attempts)) == (2, NO_USAGE)
        assert 20 <= step.earlier_attempts.wall_ms <= step.wall_ms


@asynchronous
async def test_a_step_that_is_stopped_keeps_what_was_tried_before() -> None:
    with Flaky(0, failing=0.0, unfit=1.0).in_force() as flaky:
        async with rig() as r:
            workflow_id = (await r.submit(ONE.replace("max: 1", "max: 1, delay_s: 60"))).workflow_id
            await until(lambda: results(r.executor.get(workflow_id))["draft"].attempt == 2)
            await r.executor.cancel(workflow_id)
            step = results(r.executor.get(workflow_id))["draft"]
            assert (step.state, untimed(step.total)) == ("cancelled", flaky.of("draft", [1]))
            assert step.wall_ms >= step.earlier_attempts.wall_ms > 0
