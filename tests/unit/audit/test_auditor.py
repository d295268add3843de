"""An audit on a random small model follows the recorded path, finds no difference where none is, and finds flips."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from audit_rig import audit_rig
from executor_rig import results, until

from laban.actors.errors import FailedPrecondition, InvalidInput
from laban.cluster.audit.records import Decision, RecordedStep, Refused, Replayed, StepAudit
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.states import Overrides

FLOW = """
version: 1
name: flow
sampling: {max_tokens: 12, temperature: 0}
messages: {a: "first words", b: "other words entirely"}
steps:
  - {step: one, read: [a]}
  - {step: two, read: [b]}
  - {step: both, read: [b, one, a, two], values: {letter: "([a-z])"}}
  - {step: closing, read: [both], when: "both.letter != 'q'"}
"""


def test_every_step_is_compared_and_the_run_is_replayed_in_whole() -> None:
    async def main() -> None:
        async with audit_rig() as rig:
            record, recorded = await rig.record(FLOW)
            assert record.state == "succeeded"
            items = await rig.audit(FLOW, recorded, num_apart=2)
            steps = {(i.address, i.read): i for i in items if isinstance(i, StepAudit)}
            whole = {address: i for (address, read), i in steps.items() if read is None}
            assert list(whole) == [step.address for step in recorded if step.token_ids]
            tokens = {step.address: len(step.token_ids) for step in recorded}
            assert all(len(i.kl) == len(i.agrees) == len(i.logprob_changes) == tokens[a] for a, i in whole.items())
            assert whole["one"].is_same
            assert max(whole["one"].kl) == 0.0
            assert not whole["both"].is_same
            assert sum(whole["both"].kl) > 1e-6
            assert 0 < whole["both"].num_reused <= whole["both"].num_read
            apart = {read for (address, read) in steps if address == "both" and read is not None}
            assert apart == {1, 2, 3}  # the first read is at the same place under both
            replayed = {i.level: i for i in items if isinstance(i, Replayed)}
            assert set(replayed) == {"exact", "direct"}
            assert replayed["direct"].num_encoded < replayed["exact"].num_encoded
            assert replayed["exact"].num_read == replayed["direct"].num_read

    asyncio.run(main())


def test_a_level_that_changes_nothing_diverges_nowhere_and_decides_the_same() -> None:
    async def main() -> None:
        async with audit_rig() as rig:
            _, recorded = await rig.record(FLOW)
            items = await rig.audit(FLOW, recorded, levels=("written",))
            assert all(i.is_same and not any(i.kl) for i in items if isinstance(i, StepAudit))
            decisions = [i for i in items if isinstance(i, Decision)]
            assert decisions
            assert not any(i.flips for i in decisions)

    asyncio.run(main())


def test_a_decision_that_flips_is_found() -> None:
    """The recorded text decides one way; what the level generates by itself another."""

    async def main() -> None:
        async with audit_rig() as rig:
            _, recorded = await rig.record(FLOW)
            other = tuple(
                RecordedStep(s.address, "0000", tuple(map(ord, "0000"))) if s.address == "both" else s for s in recorded
            )
            items = await rig.audit(FLOW, other)
            [letter] = [i for i in items if isinstance(i, Decision) and i.name == "value letter"]
            assert letter.was == "null"
            assert letter.becomes != "null"
            assert letter.flips
            [branch] = [i for i in items if isinstance(i, Decision) and i.name.startswith("when")]
            assert branch.was == "true"

    asyncio.run(main())


def test_a_run_of_another_workflow_is_refused() -> None:
    async def main() -> None:
        async with audit_rig() as rig:
            with pytest.raises(FailedPrecondition, match="does not come to this step"):
                await rig.audit(FLOW, (RecordedStep("closing", "x", (120,)),))

    asyncio.run(main())


def test_tokens_that_are_none_of_the_models_are_refused_by_name() -> None:
    async def main() -> None:
        async with audit_rig() as rig:
            _, recorded = await rig.record(FLOW)
            wrong = [*recorded]
            wrong[1] = replace(recorded[1], token_ids=(*recorded[1].token_ids[:2], 99_999_999))
            with pytest.raises(InvalidInput, match=r"recorded\[1\].token_ids\[2\]: expected 0 to .*got 99999999"):
                await rig.audit(FLOW, wrong)

    asyncio.run(main())


def test_a_level_that_would_leak_is_refused_and_the_others_go_on() -> None:
    flow = FLOW.replace('a: "first words"', 'a: {text: "first words", private: true}').replace(", a, two", ", two")

    async def main() -> None:
        async with audit_rig() as rig:
            _, recorded = await rig.record(flow)
            items = await rig.audit(flow, recorded, levels=("direct", "written"))
            assert [i.level for i in items if isinstance(i, Refused)] == ["direct"]
            assert {i.level for i in items if isinstance(i, StepAudit)} == {"written"}

    asyncio.run(main())


def test_loops_votes_failures_and_nested_workflows_go_the_recorded_way() -> None:
    flow = """
version: 1
name: outer
sampling: {max_tokens: 6, temperature: 1.0, seed: 3}
messages: {q: "a question"}
workflows:
  inner:
    version: 1
    name: inner
    messages: {topic: "nothing"}
    steps: [{step: draft, read: [topic]}, {step: fix, read: [draft, topic]}]
steps:
  - {step: idea, for_each: {count: 3}, read: [q]}
  - {step: judge, for_each: {count: 3}, read: ["idea[all]", q], vote: idea, values: {n: "([0-9])"}}
  - loop: {name: polish, max: 3, until: "polished.n == 7", on_max: continue}
    steps:
      - {step: polished, read: ["idea[winner(judge)]", "polished[previous]", q], values: {n: "([0-9])"}}
  - {step: tool, external: {}, on_error: message, read: [q]}
  - {step: sub, workflow: inner, messages: {topic: "idea[1]"}}
  - {step: end, read: [sub, tool, "polished[last]"]}
"""

    async def main() -> None:
        async with audit_rig(num_workers=2) as rig:

            async def fail_tool(workflow_id: str) -> None:
                await until(lambda: results(rig.executor.get(workflow_id))["tool"].state == "ready")
                await rig.executor.fail_step(workflow_id, "tool", "broken", final=True)

            record, recorded = await rig.record(flow, meanwhile=fail_tool)
            assert record.state == "succeeded", record.error
            items = await rig.audit(flow, recorded, num_apart=1)
            measured = [i.address for i in items if isinstance(i, StepAudit) and i.read is None]
            made = [s.address for s in record.steps if s.state == "succeeded" and s.token_ids]
            assert sorted(measured) == sorted(made)
            names = {i.name for i in items if isinstance(i, Decision)}
            assert {"value n", "vote of judge"} <= names
            assert any(name.startswith("until(polish)") for name in names)

    asyncio.run(main())


PREDICTED = """
version: 1
name: predicted
inputs: {before: {}}
fidelity: corrected
tolerance: 50
sampling: {max_tokens: 12, temperature: 0}
messages: {before: "{{ before }}", text: "a text that is read again and again, each time after another"}
steps:
  - {step: said, read: [before, text]}
"""


@pytest.mark.parametrize("level", ["corrected", "written"])
def test_what_may_be_predicted_is_not_what_exact_has_just_encoded(level: str) -> None:
    async def main() -> None:
        async with audit_rig() as rig:
            for number in range(10):
                before = {"before": f"{chr(97 + number)}{chr(107 + number)} " * 12}
                record = await rig.executor.intake.submit(parse_yaml(PREDICTED), before, Overrides())
                async for _ in rig.executor.watch(record.workflow_id):
                    pass
            engine = rig.workers[0].engine
            await until(lambda: not engine.has_work())  # it tries in spare time how well it predicts
            inputs = {"before": "and this is another one, XYZ XYZ"}
            _, recorded = await rig.record(PREDICTED, inputs)
            items = await rig.audit(PREDICTED, recorded, inputs, levels=(level,))
            (audited,) = [i for i in items if isinstance(i, StepAudit)]
            assert sum(audited.kl) > 0.01

    asyncio.run(main())


def test_what_is_the_same_as_exact_is_not_compared_where_others_may_be_predicted() -> None:
    async def main() -> None:
        async with audit_rig() as rig:
            _, recorded = await rig.record(FLOW)
            audits = {}
            for level in ("direct", "corrected"):
                items = await rig.audit(FLOW, recorded, levels=(level,), num_apart=9)
                audits[level] = {(i.address, i.read): i.is_same for i in items if isinstance(i, StepAudit)}
            assert audits["corrected"] == audits["direct"]
            assert set(audits["direct"].values()) == {True, False}
            assert any(read is not None for _, read in audits["direct"])

    asyncio.run(main())


def test_each_share_is_replayed_as_the_workflow_at_that_share() -> None:
    """Whatever shares its steps, its reads, and the workflows within it state."""
    stated = INNER.replace("[{read: n}", "[{read: n, recompute_share: 0.9}").replace("read: [b,", RECOMPUTES)

    async def main() -> None:
        async with audit_rig() as rig:
            _, recorded = await rig.record(stated)
            shares = (0.2, 0.5, 1.0)
            items = await rig.audit(stated, recorded, levels=tuple(f"blended:{each:g}" for each in shares))
            told = {(i.level, i.address): i for i in items if isinstance(i, StepAudit) and i.read is None}
            for share in shares:
                plain = INNER.replace("name: ", f"recompute_share: {share}\nname: ", 1)
                plain = plain.replace("    name: ", f"    recompute_share: {share}\n    name: ", 1)
                alone = await rig.audit(plain, recorded, levels=("blended",))
                for item in (i for i in alone if isinstance(i, StepAudit) and i.read is None):
                    found = told[f"blended:{share:g}", item.address]
                    assert found.kl == pytest.approx(item.kl, abs=1e-6)
                    assert found.num_reused == item.num_reused
            for address in ("both", "within/say"):
                few, half, all_again = (told[f"blended:{share:g}", address] for share in shares)
                assert few.num_reused > half.num_reused
                assert sum(few.kl) > sum(all_again.kl) == 0.0

    asyncio.run(main())


RECOMPUTES = "recompute_share: 0.05, read: [{read: b, recompute_share: 0.7},"
INNER = """
version: 1
name: outer
sampling: {max_tokens: 6, temperature: 0}
messages: {a: "some first words of ten or more", b: "other words entirely, not like those"}
workflows:
  inner:
    version: 1
    name: inner
    inputs: {n: {}}
    sampling: {max_tokens: 6, temperature: 0}
    messages: {n: "{{ n }}", m: "what is said to whoever is within"}
    steps: [{step: say, read: [{read: n}, m]}]
    outputs: {all: say}
steps:
  - {step: one, read: [a]}
  - {step: both, read: [b, one, a]}
  - {step: within, workflow: inner, inputs: {n: one.text}}
"""
