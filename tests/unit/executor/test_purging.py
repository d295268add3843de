"""A workflow that is deleted takes its encodings with it, but for those that others name."""

from __future__ import annotations

from executor_rig import rig
from executor_workflows import asynchronous

from laban.cluster.workflow.parse import parse_yaml

FLOW = """
version: 1
name: ask
messages: {q: "Well?", own: OWN}
steps:
  - {step: answer, read: [q, own], sampling: {max_tokens: 8}}
  - {step: human, read: [q, answer], external: {tool: ask}}
"""


@asynchronous
async def test_what_only_it_named_is_forgotten_everywhere() -> None:
    async with rig(2, ahead=True) as made:

        async def go(own: str) -> tuple[str, frozenset[str]]:
            record = await made.executor.intake.submit(parse_yaml(FLOW.replace("OWN", own)), {})
            async for item in made.executor.watch(record.workflow_id):
                if getattr(item, "address", "") == "human":
                    break
            return record.workflow_id, made.dispatcher.directory.watching.of(record.workflow_id)

        gone, its = await go("apples")
        kept, others = await go("pears")
        assert its & others
        assert its - others
        await made.executor.delete(gone)
        for worker in made.workers:
            told = {each for advice in worker.engine.advice for each in advice.forgotten}
            assert told == its - others
        await made.executor.cancel(kept)
        await made.executor.delete(kept)  # one that has ended already
        told = {each for advice in made.worker.engine.advice for each in advice.forgotten}
        assert told == its | others
