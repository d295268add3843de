"""Looking ahead while workflows run: workers are told, and workflows wait whole while memory is short."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from executor_rig import Rig, rig, until
from executor_workflows import asynchronous, tool_step
from scripted_engine import CharFraming, CharTokenizer

from laban.actors.calls import Sampling
from laban.cluster.lookout import Lookout
from laban.cluster.messages import Language
from laban.cluster.records import Event, SessionPlacement
from laban.cluster.sessions import Sessions
from laban.kvstore.encodings import flatten

# A worker's pool has 16,000 bytes, a token one; of the first workflow's calls each may make 1,500.
WIDE = """
version: 1
name: wide
messages: {task: "What?"}
sampling: {max_tokens: 1500}
steps:
  - {step: part, for_each: 6, read: [task]}
  - {step: wrap, read: [{read: part, end: 3}]}
"""
SMALL = WIDE.replace("name: wide", "name: small").replace("for_each: 6", "for_each: 1")
HUGE = WIDE.replace("name: wide", "name: huge").replace("for_each: 6", "for_each: 20")
CHAIN = """
version: 1
name: chain
messages: {task: "What?", more: "And why?"}
agents: {ann: Be Ann, bob: Be Bob}
steps:
  - {step: draft, agent: ann, read: [task]}
  - {step: review, agent: bob, read: [task, more, draft]}
"""


def states(made: Rig, *ids: str) -> list[str]:
    """`held`, or the state of the first step."""
    records = [made.executor.get(each) for each in ids]
    return ["held" if record.held else record.steps[0].state for record in records]


async def submitted(made: Rig, *workflows: str) -> list[str]:
    return [(await made.submit(workflow)).workflow_id for workflow in workflows]


@asynchronous
async def test_a_workflow_that_does_not_fit_waits_whole_and_says_so() -> None:
    async with rig(ahead=True) as made:
        made.worker.paused = True
        first, second = await submitted(made, WIDE, WIDE)
        assert states(made, first, second) == ["ready", "held"]
        record = made.executor.get(second)
        assert record.state == "running"
        assert record.held.startswith("waits for KV memory: it needs up to")
        assert {step.state for step in record.steps} == {"waiting"}
        assert made.executor.status().workflows_held == 1
        made.worker.resume()
        items = [item for item in await made.items(second) if isinstance(item, Event)]
        assert [(item.workflow_state, bool(item.held)) for item in items if item.kind == "workflow_state"] == [
            ("running", True),
            ("running", False),
            ("succeeded", False),
        ]
        assert [item.at for item in items] == sorted(item.at for item in items)
        assert made.executor.get(second).held == ""
        assert made.executor.status().workflows_held == 0
        calls = [call.call_id.partition("/")[0] for call in made.worker.engine.calls]
        assert calls == sorted(calls, key=[first, second].index)  # no call of the second before the first's last


@asynchronous
async def test_a_worker_hears_what_of_its_calls_will_be_read_no_more() -> None:
    async with rig(ahead=True) as made:
        [chain] = await submitted(made, CHAIN)
        assert (await made.end(chain)).state == "succeeded"
        engine = made.worker.engine
        draft, review = engine.calls
        specs = {spec.encoding_id: spec for spec in review.specs}
        *_, last = [placed.encoding_id for placed in flatten(review.view, specs)]
        await until(lambda: sum(len(advice.over) for advice in engine.advice) >= 3)
        over = {each for advice in engine.advice for each in advice.over}
        assert last in over  # the draft behind another prompt
        assert over.isdisjoint(spec.encoding_id for spec in draft.specs)  # prompts and tasks are others' as well
        assert len(over) == 3  # beside it what both steps made


@asynchronous
async def test_one_that_needs_less_by_and_by_lets_the_next_in() -> None:
    async with rig(ahead=True) as made:
        made.worker.paused = True
        first, second = await submitted(made, WIDE, WIDE)
        assert states(made, first, second) == ["ready", "held"]
        made.worker.resume()
        await until(lambda: made.executor.get(first).steps[-1].state != "waiting")
        made.worker.paused = True  # the first is at its last step
        await until(lambda: states(made, second) != ["held"])
        assert made.executor.get(first).state == "running"
        made.worker.resume()
        await made.end(second)


@asynchronous
async def test_one_always_runs_and_a_waiting_one_can_be_cancelled() -> None:
    async with rig(ahead=True) as made:
        made.worker.paused = True
        ids = await submitted(made, HUGE, HUGE, SMALL)
        assert states(made, *ids) == ["ready", "held", "held"]
        record = await made.executor.cancel(ids[1])
        assert record.state == "cancelled"
        assert record.held == ""
        assert {step.state for step in record.steps} == {"cancelled"}
        assert [item.workflow_state for item in await made.items(ids[1]) if isinstance(item, Event)][-1] == "cancelled"
        await made.executor.cancel(ids[0])
        await until(lambda: states(made, ids[2]) == ["ready"])
        made.worker.resume()
        assert (await made.end(ids[2])).state == "succeeded"


@asynchronous
async def test_small_ones_pass_a_large_one_only_so_often() -> None:
    async with rig(ahead=True) as made:
        made.worker.paused = True
        ids = await submitted(made, WIDE, HUGE, *[SMALL] * 12)
        assert states(made, ids[0], ids[1]) == ["ready", "held"]
        assert 1 <= states(made, *ids[2:]).count("ready") <= 8
        made.worker.resume()
        assert {(await made.end(each)).state for each in ids} == {"succeeded"}


@asynchronous
async def test_who_waits_for_a_tool_lets_others_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.cluster.waiting_room.RETRY_S", 0.02)
    async with rig(ahead=True) as made:
        assert made.lookout is not None
        asking = tool_step().replace("version: 1", "version: 1\nsampling: {max_tokens: 1900}")
        asking = asking.replace("{step: final,", "{step: final, for_each: 7,")
        ids = await submitted(made, asking, WIDE)
        assert states(made, *ids) == ["ready", "held"]
        object.__setattr__(made.lookout._waiting_room._admission._limits, "idle_s", 0.1)
        assert (await made.end(ids[1])).state == "succeeded"
        await made.executor.complete_step(ids[0], "tests", "fine")
        assert (await made.end(ids[0])).state == "succeeded"


@asynchronous
async def test_a_worker_more_lets_more_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.cluster.waiting_room.RETRY_S", 0.02)
    async with rig(num_workers=2, ahead=True) as made:
        assert made.lookout is not None
        for worker in made.workers:
            worker.paused = True
        there = made.lookout._kv_bytes()[""]
        assert there == 2 * 16_000
        made.lookout._waiting_room._capacity_bytes = lambda: there // 2
        ids = await submitted(made, WIDE, WIDE)
        assert states(made, *ids) == ["ready", "held"]
        made.lookout._waiting_room._capacity_bytes = lambda: there
        await until(lambda: states(made, *ids) == ["ready", "ready"])
        for worker in made.workers:
            worker.resume()
        for each in ids:
            await made.end(each)


@asynchronous
async def test_what_is_learned_of_lengths_lets_more_in() -> None:
    async with rig(ahead=True) as made:
        await made.run(WIDE)  # its steps say a dozen tokens
        made.worker.paused = True
        ids = await submitted(made, WIDE, WIDE, WIDE)
        assert states(made, *ids) == ["ready"] * 3
        made.worker.resume()
        for each in ids:
            await made.end(each)


@asynchronous
async def test_workers_hear_of_what_the_next_steps_will_read() -> None:
    async with rig(ahead=True) as made:
        assert made.lookout is not None
        record = await made.submit(CHAIN.replace("read: [task]}", 'read: [task], prefill: "SLOW"}'))
        foresight = made.lookout.foresight
        await until(lambda: made.worker.engine.advice)
        told = {key: use for advice in made.worker.engine.advice for key, use in advice.uses}
        prefetched = [each.encoding_id for advice in made.worker.engine.advice for each in advice.prefetches]
        texts = ["".join(map(chr, foresight.specs_of(each)[-1].tokens)) for each in prefetched]
        assert [text for text in texts if "Bob" in text or "why" in text] == ["[system:]Be Bob|", "[user:]And why?|"]
        assert set(prefetched) <= told.keys()
        successors = foresight.successors(record.workflow_id)
        assert successors is not None
        assert set(prefetched) <= successors.keys()
        await made.end(record.workflow_id)
        assert foresight.successors(record.workflow_id) is None
        await until(lambda: not foresight.upcoming())
        await until(lambda: not any({k: use for a in made.worker.engine.advice for k, use in a.uses}.values()))
        ranks = {call.rank for call in made.worker.engine.calls}
        assert len(ranks) == 1
        assert made.lookout.history.tokens("chain", "review") is not None
        assert not made.dispatcher.directory.watching.sources()


@asynchronous
async def test_explaining_says_when_messages_are_read_next() -> None:
    async with rig(ahead=True) as made:
        text = CHAIN.replace("agents: {ann: Be Ann, bob: Be Bob}", "agents: {ann: Be Ann, bob: Be Ann}")
        record = await made.submit(text.replace("read: [task]}", 'read: [task], prefill: "SLOW"}'))
        await until(lambda: made.executor.get(record.workflow_id).steps[0].state == "running")
        await until(lambda: made.executor.explain(record.workflow_id, "draft").uses)
        uses = {use.message: use.steps for use in made.executor.explain(record.workflow_id, "draft").uses}
        assert uses == {"agent:ann": 1, "task": 1}  # the same prompt, and the task behind it
        await made.end(record.workflow_id)


@asynchronous
async def test_sessions_keep_their_messages_and_have_a_place_among_the_workflows() -> None:
    async with rig(ahead=True) as made:
        assert made.lookout is not None
        foresight = made.lookout.foresight

        def language(tenant: str, model: str = "") -> Language:
            return Language(CharFraming(), CharTokenizer(), "model", 2000)

        sessions = Sessions(
            made.dispatcher,
            language,
            hint_taker=foresight,
            onlooker=foresight,
            next_rank=made.executor.intake.next_rank,
        )
        await made.run(CHAIN)
        session = sessions.open().session_id
        message = await sessions.prefill(session, "user", text="remember")
        async for _ in sessions.decode(session, sampling=Sampling(4), view=[SessionPlacement(message.message_id)]):
            continue
        await until(lambda: len(foresight.upcoming()) == 2)
        assert made.worker.engine.calls[-1].rank > made.worker.engine.calls[0].rank
        assert all(use.in_s > 500 for use in foresight.upcoming().values())
        assert all(foresight.specs_of(each)[-1].encoding_id == each for each in foresight.upcoming())
        sessions.close(session)
        await until(lambda: not foresight.upcoming())
        assert not made.dispatcher.directory.watching.sources()


@asynchronous
async def test_it_can_do_without_admission_and_prefetching() -> None:
    async with rig(ahead=False) as made:
        lookout = Lookout(made.dispatcher, prefetch=False, admission=False)
        made.executor._lookout = lookout
        lookout.start()
        made.worker.paused = True
        ids = await submitted(made, WIDE, WIDE)
        assert states(made, *ids) == ["ready", "ready"]
        assert lookout.num_held == 0
        made.worker.resume()
        for each in ids:
            assert (await made.end(each)).state == "succeeded"
        await asyncio.sleep(0.05)
        assert not any(advice.prefetches for advice in made.worker.engine.advice)
        await lookout.stop()


@asynchronous
async def test_what_was_only_bounded_is_known_better_once_somebody_waits() -> None:
    async with rig(ahead=True) as made:
        assert made.lookout is not None
        room = made.lookout._waiting_room
        assert room is not None
        room._capacity = {"": 1 << 40}  # as far as the first one knows
        made.worker.paused = True
        # Some 6,500 bytes at once, bounded by 48,000.
        many = WIDE.replace("for_each: 6", "for_each: 60").replace("1500", "100")
        ids = await submitted(made, many)
        assert room._guests[ids[0]].estimate.is_rough
        ids += await submitted(made, WIDE.replace("for_each: 6", "for_each: 5"))
        assert states(made, *ids) == ["ready", "held"]
        await until(lambda: states(made, *ids) == ["ready", "ready"])
        assert not room._guests[ids[0]].estimate.is_rough
        made.worker.resume()
        for each in ids:
            await made.end(each)


@asynchronous
async def test_no_workflow_fails_for_what_cannot_be_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("broken")

    async with rig(ahead=True) as made:
        made.worker.paused = True
        first, second = await submitted(made, WIDE, WIDE)
        monkeypatch.setattr("laban.cluster.demand.DemandProfile.now", broken)
        monkeypatch.setattr("laban.cluster.outlook.RunOutlook.look", broken)
        monkeypatch.setattr("laban.cluster.prefetching.Prefetching.plan", broken)
        made.worker.resume()
        assert (await made.end(first)).state == "succeeded"
        assert (await made.end(second)).state == "succeeded"
        assert (await made.run(WIDE)).state == "succeeded"
        monkeypatch.setattr("laban.cluster.lookout.RunDemand", broken)
        assert (await made.run(WIDE)).state == "succeeded"


@pytest.mark.parametrize(
    "breaks", ["foresight.begin", "foresight.moved", "foresight.end", "_meter", "likelihoods.observe"]
)
@asynchronous
async def test_who_only_looks_ahead_stops_no_workflow(breaks: str, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Neither one that begins at once nor one that is held back first."""
    async with rig(ahead=True) as made:
        if breaks == "_meter":
            counting = ("workflow_submitted", "workflow_ended", "step_ended")
            meter = SimpleNamespace(**dict.fromkeys(counting, lambda *_: 1 / 0))
            monkeypatch.setattr(made.lookout, "_meter", meter)
        else:
            owner, _, name = breaks.rpartition(".")
            monkeypatch.setattr(getattr(made.lookout, owner), name, lambda *_: 1 / 0)
        made.worker.paused = True
        first, second = await submitted(made, WIDE, WIDE)
        assert states(made, first, second) == ["ready", "held"]
        made.worker.resume()
        for each in (first, second):
            assert (await made.end(each)).state == "succeeded"
        assert made.executor.shelf.num_active == made.executor.status().workflows_held == 0
        assert "ZeroDivisionError" in caplog.text


@asynchronous
async def test_who_waits_for_memory_is_let_in_though_what_there_is_cannot_be_asked_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(ahead=True) as made:
        made.worker.paused = True
        room = made.lookout._waiting_room
        first, second = await submitted(made, WIDE, WIDE)
        with monkeypatch.context() as patched:
            patched.setattr(room, "_capacity_bytes", lambda: 1 / 0)
            room._guests[first].is_idle = lambda: 1 / 0
            room._capacity_until_s = 0.0
            room._retry()
            [third] = await submitted(made, WIDE)
        assert states(made, second, third) == ["held", "held"]
        made.worker.resume()
        for each in (first, second, third):
            assert (await made.end(each)).state == "succeeded"
