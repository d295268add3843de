"""Audits in service run beside nothing, are given up for anything, and report who leaves the tolerance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from audit_rig import AsciiTokenizer, AuditRig, audit_rig
from chat_rig import ChatFraming, ChatTokenizer, make_prompts
from scripted_engine import CharFraming

from laban.actors.calls import Sampling
from laban.actors.chat_messages import ChatMessage
from laban.cluster.audit.budget import Budget, is_chosen
from laban.cluster.audit.cases import calls_of
from laban.cluster.audit.findings import Finding, Subject
from laban.cluster.audit.in_service import InService
from laban.cluster.audit.knowledge import Remembered
from laban.cluster.audit.records import RecordedStep, StepAudit
from laban.cluster.audit.resolving import Levels
from laban.cluster.audit.tally import MIN_CALLS, Tally
from laban.cluster.audit.watching import Watch
from laban.cluster.chats import ChatAsk, Chats
from laban.cluster.config_sections import AuditSection
from laban.cluster.executor import Executor
from laban.cluster.meter import Meter
from laban.cluster.records import MessageRecord, SessionPlacement, WorkflowRecord
from laban.cluster.sessions import Sessions
from laban.cluster.workflow.fidelity import CHEAPEST_FIRST
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import flatten, make_spec

FLOW = """
version: 1
name: flow
sampling: {max_tokens: 6, temperature: 0}
messages: {a: "first words", b: "other words entirely"}
steps:
  - {step: one, read: [a]}
  - {step: both, read: [b, one, a]}
"""


class Counts(Meter):
    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.compared: list[tuple[str, str, Tally]] = []
        self.spent_s = 0.0

    def audit_ended(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def audit_compared(self, workflow: str, fidelity: str, tally: Tally) -> None:
        self.compared.append((workflow, fidelity, tally))

    def audit_spent(self, worker_id: str, seconds: float) -> None:
        self.spent_s += seconds


class Rig:
    """The audit rig with audits in service."""

    def __init__(self, rig: AuditRig, plan: AuditSection) -> None:
        self.inner, self.meter, self.knowledge = rig, Counts(), Remembered()
        self.tasks: list[asyncio.Task[None]] = []
        self.levels = Levels(self.knowledge, rig.dispatcher.info.namespace, plan.fallback)
        self.watch = Watch(self.knowledge, plan.tolerance, falls_back=plan.fallback)
        self.audits = InService(plan, rig.dispatcher, self.levels, self.watch, self.meter)
        self.executor = Executor(
            rig.dispatcher, CharFraming(), AsciiTokenizer(), levels=self.levels, audits=self.audits
        )

    def begin(self) -> None:
        self.tasks.append(asyncio.ensure_future(self.audits.run()))

    async def subject(self, yaml: str, tenant: str = "") -> Subject:
        return await self.levels.subject(parse_yaml(yaml), tenant)

    async def run(self, yaml: str, fidelity: str | None = None, tenant: str = "") -> WorkflowRecord:
        record = await self.executor.intake.submit(parse_yaml(yaml), {}, Overrides(fidelity), tenant=tenant)
        async with asyncio.timeout(60):
            _ = [item async for item in self.executor.watch(record.workflow_id)]
        return self.executor.get(record.workflow_id)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


def fidelities(record: WorkflowRecord) -> set[str]:
    return {step.fidelity for step in record.steps}


@asynccontextmanager
async def in_service(*, begins: bool = True, **settings: float) -> AsyncIterator[Rig]:
    async with audit_rig() as inner:
        rig = Rig(inner, AuditSection(**({"share": 1.0, "budget": 1.0} | settings)))
        if begins:
            rig.begin()
        try:
            yield rig
        finally:
            for task in rig.tasks:
                task.cancel()
            await asyncio.gather(*rig.tasks, return_exceptions=True)


def test_calls_that_are_not_exact_are_compared_with_exact() -> None:
    async def main() -> None:
        async with in_service() as rig:
            await rig.run(FLOW, "direct")
            await until(lambda: len(rig.meter.outcomes) == 2)
            assert rig.meter.outcomes == ["done", "done"]
            kinds = {(workflow, level) for workflow, level, _ in rig.meter.compared}
            assert kinds == {("flow", "direct")}
            one, both = (tally for _, _, tally in rig.meter.compared)
            assert (one.kl_mean, one.num_agreed) == (0.0, 6)  # its view is the same
            assert both.kl_mean > 1e-6
            assert both.num_tokens == 6
            found = await rig.knowledge.findings(await rig.subject(FLOW))
            assert {(each.step, each.level, each.source) for each in found} == {
                ("one", "direct", "served"),
                ("both", "direct", "served"),
            }

    asyncio.run(main())


def test_what_is_found_is_what_an_audit_of_the_same_run_finds() -> None:
    async def main() -> None:
        async with in_service() as rig:
            record = await rig.run(FLOW, "direct")
            await until(lambda: len(rig.meter.outcomes) == 2)
            recorded = tuple(RecordedStep(step.address, step.text, step.token_ids) for step in record.steps)
            items = await rig.inner.audit(FLOW, recorded)
            expected = {i.step: Tally.of_call(i.kl, i.agrees) for i in items if isinstance(i, StepAudit) and not i.read}
            found = {each.step: each.tally for each in await rig.knowledge.findings(await rig.subject(FLOW))}
            assert found["both"].kl_mean == pytest.approx(expected["both"].kl_mean, rel=1e-4, abs=1e-7)
            assert found["both"].num_agreed == expected["both"].num_agreed

    asyncio.run(main())


def test_an_audit_gives_way_to_any_call_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with in_service() as rig:
            worker = rig.inner.workers[0]
            reference = {step.address: step.text for step in (await rig.run(FLOW, "direct")).steps}
            await until(lambda: len(rig.meter.outcomes) == 2)
            await rig.run(FLOW, "direct")
            worker.paused = True
            await until(lambda: worker.batches[-1][0].startswith("audit-"))
            outcomes = len(rig.meter.outcomes)
            other = asyncio.ensure_future(rig.run(FLOW.replace("name: flow", "name: other"), "direct"))
            await until(lambda: len(rig.meter.outcomes) > outcomes)
            assert rig.meter.outcomes[-1] == "dropped"
            assert worker.aborted[-1].startswith("audit-")
            assert not any(call.startswith("audit-") for call in worker.engine.scheduler.running)
            worker.resume()
            assert {step.address: step.text for step in (await other).steps} == reference
            assert rig.meter.spent_s > 0.0

    asyncio.run(main())


def test_encodings_that_only_an_audit_made_are_removed_and_others_stay() -> None:
    async def main() -> None:
        async with in_service(begins=False) as rig:
            engine = rig.inner.workers[0].engine
            await rig.run(FLOW, "direct")
            rig.begin()  # it has not looked yet
            before = set(engine.store.ready_ids())
            await until(lambda: len(rig.meter.outcomes) == 2)
            assert rig.meter.outcomes == ["done", "done"]
            await until(lambda: set(engine.store.ready_ids()) == before)

    asyncio.run(main())


def test_encodings_that_somebody_else_made_stay_when_an_audit_reads_them() -> None:
    async def main() -> None:
        async with in_service(begins=False) as rig:
            engine, sampling = rig.inner.workers[0].engine, Sampling(max_tokens=6)
            language = Executor(rig.inner.dispatcher, ChatFraming(), ChatTokenizer()).languages.of
            chats = Chats(rig.inner.dispatcher, language, make_prompts(), audits=rig.audits)
            said = (ChatMessage("user", "first words"), ChatMessage("assistant", "x"), ChatMessage("user", "more"))
            await answered(chats.reply(ChatAsk(said, sampling)))
            exact = set(engine.store.ready_ids())
            await answered(chats.reply(ChatAsk(said, sampling, fidelity="direct")))
            before = set(engine.store.ready_ids())
            assert exact < before
            rig.begin()
            await until(lambda: rig.meter.outcomes == ["done"])
            await until(lambda: set(engine.store.ready_ids()) == before)

    asyncio.run(main())


def test_what_is_granted_is_not_what_an_audit_made() -> None:
    async def main() -> None:
        async with in_service(begins=False) as rig:
            await rig.run(FLOW, "direct")
            case = rig.audits._cases[-1]
            plain = calls_of(case, "k", "kept")
            view, specs = plain.exact.view, {spec.encoding_id: spec for spec in plain.exact.specs}
            first = specs[next(place.encoding_id for place in flatten(view, specs))]
            common = make_spec("model/*", first.tokens, first.start, first.view, specs)
            language = replace(case.said.language, granted={"": {(first.start, first.view): (common,)}})
            pair = calls_of(replace(case, said=replace(case.said, language=language)), "k", "kept")
            assert common in pair.exact.specs
            assert common.encoding_id not in pair.made
            assert pair.made

    asyncio.run(main())


def test_a_share_of_none_asks_for_nothing() -> None:
    assert not any(is_chosen(f"wf-{n}", "answer", 0.0) for n in range(1000))
    chosen = sum(is_chosen(f"wf-{n}", "answer", 0.1) for n in range(10_000))
    assert 850 < chosen < 1150


def test_a_workflow_that_is_deleted_is_not_looked_at() -> None:
    async def main() -> None:
        async with in_service() as rig:
            worker = rig.inner.workers[0]
            record = await rig.run(FLOW, "direct")
            await until(lambda: len(rig.meter.outcomes) == 2)
            record = await rig.run(FLOW, "direct")
            worker.paused = True
            await until(lambda: worker.batches[-1][0].startswith("audit-"))
            await rig.executor.delete(record.workflow_id)
            await until(lambda: "dropped" in rig.meter.outcomes)
            worker.resume()
            again = await rig.run(FLOW, "direct")
            assert again.state == "succeeded"

    asyncio.run(main())


def test_a_workflow_that_leaves_its_tolerance_is_exact_from_then_on_for_its_tenant() -> None:
    async def main() -> None:
        async with in_service(tolerance=0.0, fallback=True) as rig:
            before = Finding("both", None, "direct", "served", Tally(MIN_CALLS - 2, 1.0 * MIN_CALLS, 1.2 * MIN_CALLS))
            await rig.knowledge.add(await rig.levels.subject(parse_yaml(FLOW), "one"), [before])
            assert fidelities(await rig.run(FLOW, "direct", "one")) == {"direct"}
            await until(lambda: bool(rig.watch.diverging))
            (found,) = rig.watch.diverging
            assert (found.tenant, found.workflow, found.falls_back) == ("one", "flow", True)
            fallen = await rig.run(FLOW, "direct", "one")
            assert fidelities(fallen) == {"exact"}
            assert "left its tolerance" in fallen.notes[0].why
            assert fidelities(await rig.run(FLOW, "direct", "two")) == {"direct"}
            again = Levels(rig.knowledge, rig.levels.model, falls_back=True)  # after a restart
            assert (await again.resolve(parse_yaml(FLOW), Overrides("direct"), "one")).overrides.fidelity == "exact"
            assert await rig.knowledge.clear("one", "flow")
            await rig.watch.refresh()
            assert not rig.watch.diverging
            assert fidelities(await rig.run(FLOW, "direct", "one")) == {"direct"}

    asyncio.run(main())


async def answered(items: AsyncGenerator[object]) -> MessageRecord:
    async with asyncio.timeout(60):
        found = [item async for item in items]
    assert isinstance(found[-1], MessageRecord)
    return found[-1]


def test_calls_of_sessions_and_chats_are_audited_under_names_of_their_own() -> None:
    async def main() -> None:
        async with in_service(begins=False) as rig:
            dispatcher, sampling = rig.inner.dispatcher, Sampling(max_tokens=6)
            executor = Executor(dispatcher, ChatFraming(), ChatTokenizer())
            chats = Chats(dispatcher, executor.languages.of, make_prompts(), audits=rig.audits)
            sessions = Sessions(dispatcher, executor.languages.of, chats=chats, audits=rig.audits)
            session_id = sessions.open().session_id
            made = [await sessions.prefill(session_id, "user", text=text) for text in ("first words", "and other ones")]
            views = [tuple(SessionPlacement(one.message_id) for one in part) for part in (made[:1], made)]
            for view in views:
                for level in ("exact", "direct"):
                    await answered(sessions.decode(session_id, sampling=sampling, view=view, fidelity=level))
            # As encoded both stand at the same place, and where the answer does is said.
            placed = {"view": views[1], "layout": "as_encoded", "position": 90}
            await answered(sessions.decode(session_id, sampling=sampling, fidelity="direct", **placed))
            said = (ChatMessage("user", "first words"), ChatMessage("assistant", "x"), ChatMessage("user", "more"))
            await answered(sessions.chat(session_id, ChatAsk(said, sampling, fidelity="direct")))
            await answered(chats.reply(ChatAsk(said, sampling, fidelity="direct")))
            await answered(chats.reply(ChatAsk(said, sampling)))
            rig.begin()  # one that runs is dropped for the next call
            await until(lambda: len(rig.meter.outcomes) == 5)
            assert rig.meter.outcomes == ["done"] * 5
            assert [(name, level) for name, level, _ in rig.meter.compared] == [
                *[("@sessions", "direct")] * 4, ("@chats", "direct"),
            ]  # fmt: skip
            alone, *others = [tally for _, _, tally in rig.meter.compared]
            assert alone == Tally.of_call([0.0] * 6, [True] * 6)  # what is read alone at its home is exact
            assert all(tally.num_tokens == 6 and tally.kl_sum > 1e-6 for tally in others)
            (of_sessions,) = await rig.knowledge.findings(rig.levels.subject_of_calls("@sessions", ""))
            assert of_sessions.key == (dispatcher.info.model_name, None, "direct", "served")
            assert of_sessions.tally.num_calls == 4

    asyncio.run(main())


def test_a_call_of_a_session_is_forced_under_the_very_places_that_it_had() -> None:
    async def main() -> None:
        async with in_service(begins=False) as rig:
            dispatcher, sampling = rig.inner.dispatcher, Sampling(max_tokens=4)
            language = Executor(dispatcher, ChatFraming(), ChatTokenizer()).languages.of
            sessions = Sessions(dispatcher, language, audits=rig.audits)
            session_id = sessions.open().session_id
            first, other = [
                await sessions.prefill(session_id, "user", text=text) for text in ("first words", "and other ones")
            ]
            view = (SessionPlacement(first.message_id, 40, 2, 9), SessionPlacement(other.message_id))
            await answered(sessions.decode(session_id, sampling=sampling, view=view, fidelity="direct", position=77))
            (case,) = rig.audits._cases
            pair = calls_of(case, "k", "kept")
            ((_, served),) = pair.others
            assert (served.start, pair.exact.start) == (77, 77)
            assert [(p.position, p.begin, p.end) for p in served.view.placements] == [
                (40, 2, 9), (47, 0, other.num_tokens),
            ]  # fmt: skip
            specs = {spec.encoding_id: spec for spec in pair.exact.specs}
            places = [p for p in flatten(pair.exact.view, specs)][-2:]
            assert [(p.position, p.num_tokens) for p in places] == [(40, 7), (47, other.num_tokens)]
            assert case.said.entries[0].begin == 2

    asyncio.run(main())


def test_sessions_that_leave_the_tolerance_are_told_and_keep_their_level() -> None:
    async def main() -> None:
        known = Remembered()
        watch = Watch(known, 0.0, falls_back=True)
        subject = Levels(known, "model").subject_of_calls("@sessions", "one")
        found = Finding("tiny", None, "direct", "served", Tally(MIN_CALLS, 1.0 * MIN_CALLS, 1.2 * MIN_CALLS))
        await watch.take(subject, [found], None)
        (told,) = watch.diverging
        assert (told.workflow, told.falls_back) == ("@sessions", False)
        await watch.refresh()
        assert not watch.diverging[0].falls_back

    asyncio.run(main())


def test_calls_that_auto_left_exact_are_tried_at_other_levels() -> None:
    async def main() -> None:
        async with in_service() as rig:
            record = await rig.run(FLOW, "auto")
            assert fidelities(record) == {"exact"}
            assert {note.why for note in record.notes} == {"nothing is known of other levels"}
            await until(lambda: len(rig.meter.outcomes) == 2)
            found = await rig.knowledge.findings(await rig.subject(FLOW))
            assert {(each.step, each.level, each.source) for each in found} == {
                (step, str(degree), "shadow") for step in ("one", "both") for degree in CHEAPEST_FIRST
            }
            assert not rig.watch.diverging
            assert fidelities(await rig.run(FLOW, "exact")) == {"exact"}
            await rig.run(FLOW, "exact")
            assert len(rig.meter.outcomes) == 2

    asyncio.run(main())


def test_what_is_served_blended_is_known_by_its_share() -> None:
    async def main() -> None:
        async with in_service() as rig:
            mixed = FLOW.replace("[b, one,", "[{read: b, recompute_share: 0.9}, one,")
            shares = [FLOW.replace("name: flow", f"name: flow\nrecompute_share: {share}") for share in (0.3, 0.6)]
            for number, flow in enumerate((*shares, mixed), 1):
                await rig.run(flow, "blended")
                await until(lambda number=number: len(rig.meter.outcomes) == 2 * number)  # the next run drops it
            found = await rig.knowledge.findings(await rig.subject(FLOW))  # one workflow, at other shares
            assert {(each.step, each.level) for each in found} == {
                ("one", "blended:0.3"), ("both", "blended:0.3"), ("one", "blended:0.6"), ("both", "blended:0.6"),
                ("one", "blended:0.15"), ("both", "mixed"),
            }  # fmt: skip
            assert {level for _, level, _ in rig.meter.compared} == {"blended", "mixed"}

    asyncio.run(main())


PREDICTED = """
version: 1
name: predicted
inputs: {before: {}}
tolerance: 50
sampling: {max_tokens: 12, temperature: 0}
messages: {before: "{{ before }}", text: "a text that is read again and again, each time after another"}
steps:
  - {step: said, read: [before, text]}
"""


def test_what_may_be_predicted_is_tried_apart_from_what_exact_has_encoded() -> None:
    async def main() -> None:
        async with in_service(begins=False) as rig:
            engine = rig.inner.workers[0].engine

            async def run(fidelity: str, before: str) -> None:
                flow, inputs = parse_yaml(PREDICTED), {"before": before}
                record = await rig.executor.intake.submit(flow, inputs, Overrides(fidelity), tenant="one")
                async with asyncio.timeout(60):
                    _ = [item async for item in rig.executor.watch(record.workflow_id)]

            for number in range(10):
                await run("corrected", f"{chr(97 + number)}{chr(107 + number)} " * 12)
            rig.audits._cases.clear()
            await until(lambda: not engine.has_work())  # it tries in spare time how well it predicts
            await run("auto", "and this is another one, XYZ XYZ")
            before = set(engine.store.ready_ids())
            rig.begin()
            await until(lambda: rig.meter.outcomes == ["done"])
            found = await rig.knowledge.findings(await rig.subject(PREDICTED, "one"))
            (corrected,) = [each for each in found if each.level == "corrected"]
            assert corrected.source == "shadow"
            assert corrected.tally.kl_mean > 1e-3
            await until(lambda: set(engine.store.ready_ids()) == before)

    asyncio.run(main())


def test_a_budget_is_kept_and_what_is_taken_too_much_paid_back() -> None:
    budget = Budget(0.02)
    assert not budget.allows("w", 0.1, 0.0)
    assert not budget.allows("w", 0.1, 4.9)
    assert budget.allows("w", 0.1, 5.1)
    budget.spend("w", 1.0, 5.1)
    assert not budget.allows("w", 0.0, 40.0)
    assert budget.allows("w", 0.0, 51.0)
    assert budget.left_s("w", 1e6) == pytest.approx(12.0)  # what is saved up has a limit
    assert budget.allows("w", 1000.0, 1e6)


def test_in_the_long_run_no_more_is_taken_than_the_share() -> None:
    for seed in range(20):
        rng, now_s, spent_s, largest_s = random.Random(seed), 0.0, 0.0, 0.0
        budget = Budget(0.02)
        budget.left_s("w", now_s)
        for _ in range(2000):
            now_s += rng.expovariate(1.0)
            expected_s = rng.expovariate(10.0)
            if budget.allows("w", expected_s, now_s):
                took_s = expected_s * rng.uniform(0.5, 3.0)  # estimates may be wrong
                budget.spend("w", took_s, now_s)
                spent_s, largest_s = spent_s + took_s, max(largest_s, took_s)
        assert 0.0 < spent_s <= 0.02 * now_s + largest_s
