"""What `auto` chose on some inputs keeps to its tolerance on others: a random small model, audits of whole runs."""

from __future__ import annotations

import asyncio
import random
from statistics import fmean

import pytest
import yaml
from audit_rig import AuditRig, audit_rig

from laban.cluster.audit.choosing import resolve
from laban.cluster.audit.findings import Finding, found_in
from laban.cluster.audit.records import AuditItem, StepAudit
from laban.cluster.audit.tally import MIN_CALLS
from laban.cluster.workflow.parse import parse_yaml, to_dict
from laban.cluster.workflow.states import Overrides

FLOW = """
version: 1
name: flow
inputs: {topic: {}}
sampling: {max_tokens: 4, temperature: 0}
messages: {a: "{{ topic }} first", b: "other words than {{ topic }}"}
steps:
  - {step: one, read: [a]}
  - {step: two, read: [b, a]}
  - {step: both, read: [b, one, two, a]}
"""

NUM_CHOSEN_BY = MIN_CALLS + 2  # some say nothing


async def _audited(rig: AuditRig, text: str, topic: str, levels: tuple[str, ...]) -> list[AuditItem]:
    inputs = {"topic": topic}
    record, recorded = await rig.record(text, inputs)
    assert record.state == "succeeded"
    return await rig.audit(text, recorded, inputs, levels=levels)


@pytest.mark.slow
def test_auto_keeps_to_its_tolerance_on_inputs_that_it_was_not_chosen_by() -> None:
    async def main() -> None:
        rng = random.Random(11)
        topics = ["".join(rng.choices("abcdefgh ", k=rng.randint(4, 12))) for _ in range(NUM_CHOSEN_BY + 6)]
        async with audit_rig() as rig:
            items: list[AuditItem] = []
            for topic in topics[:NUM_CHOSEN_BY]:
                items += await _audited(rig, FLOW, topic, ("direct",))
            findings: list[Finding] = found_in(items)
            means = {each.step: each.tally.kl_mean for each in findings if each.level == "direct"}
            assert means["both"] > means["one"] == 0.0
            chosen = {}
            for tolerance in (means["both"] / 100, means["both"] * 4):
                resolved = resolve(parse_yaml(FLOW), Overrides("auto", tolerance=tolerance), findings)
                levels = {note.step: note.level for note in resolved.notes if note.why}
                chosen[tolerance] = levels["both"]
                text = yaml.safe_dump(to_dict(resolved.workflow), sort_keys=False)
                held_out: dict[str, list[float]] = {}
                for topic in topics[NUM_CHOSEN_BY:]:
                    for item in await _audited(rig, text, topic, ("written",)):
                        if isinstance(item, StepAudit) and item.kl:
                            held_out.setdefault(item.step, []).append(fmean(item.kl))
                for step, found in held_out.items():
                    assert fmean(found) <= tolerance, (step, levels[step])
            assert list(chosen.values()) == ["exact", "direct"]

    asyncio.run(main())
