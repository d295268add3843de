"""Quotas reach those who keep them: workers before any call, and the bucket when a call has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from executor_rig import FAST
from executor_workflows import asynchronous
from scripted_engine import CharFraming, CharTokenizer, LoopWorker, ScriptedEngine

from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.records import TokenChunk
from laban.cluster.tenants import Tenants
from laban.cluster.tokens import TokenBook
from laban.cluster.workflow.parse import parse_yaml

FLOW = """
version: 1
name: ask
messages: {q: "Well?"}
steps: [{step: answer, read: [q], sampling: {max_tokens: 8}}]
"""


class Limited(Tenants):
    def __init__(self) -> None:
        self.limits: Mapping[str, int] = {"acme": 5000}
        self.spending: list[tuple[str, int]] = []

    @property
    def kv_bytes(self) -> Mapping[str, int]:
        return self.limits

    def spent(self, tenant: str, num_tokens: int) -> None:
        self.spending.append((tenant, num_tokens))


@asynchronous
async def test_workers_are_told_before_a_call_and_when_it_changes() -> None:
    tenants, worker = Limited(), LoopWorker(ScriptedEngine())
    dispatcher = Dispatcher([worker], limits=FAST, tenants=tenants)
    executor = Executor(dispatcher, CharFraming(), CharTokenizer())
    executor.start()

    async def run() -> int:
        record = await executor.intake.submit(parse_yaml(FLOW), {}, tenant="acme")
        async for _ in executor.watch(record.workflow_id):
            continue
        step = executor.get(record.workflow_id).steps[0]
        return step.tokens_encoded + step.tokens_generated

    spent = [await run(), await run()]
    assert [each.kv_bytes for each in worker.engine.advice] == [(("model/acme", 5000),)]
    tenants.limits = {}
    spent.append(await run())
    assert [each.kv_bytes for each in worker.engine.advice] == [(("model/acme", 5000),), ()]
    assert tenants.spending == [("acme", num_tokens) for num_tokens in spent]
    await executor.stop()


@asynchronous
async def test_who_stops_a_call_is_charged_for_what_there_was_of_it() -> None:
    """Else a client that reads a stream and leaves before its last token would have it for nothing."""
    tenants, worker = Limited(), LoopWorker(ScriptedEngine())
    dispatcher = Dispatcher([worker], limits=FAST, tenants=tenants)
    executor = Executor(dispatcher, CharFraming(), CharTokenizer())
    executor.start()
    record = await executor.intake.submit(parse_yaml(FLOW.replace("8}", "1000}")), {}, tenant="acme")
    num_tokens = 0
    async for item in executor.watch(record.workflow_id):
        if isinstance(item, TokenChunk):
            num_tokens += len(item.token_ids)
            if num_tokens > 5 and not tenants.spending:
                await executor.cancel(record.workflow_id)
    assert executor.get(record.workflow_id).state == "cancelled"
    assert [tenant for tenant, _ in tenants.spending] == ["acme"]
    assert tenants.spending[0][1] > num_tokens  # its header was encoded, too
    assert tenants.spending[0][1] < 1000
    await executor.stop()


def test_the_file_says_sizes_and_what_did_not_change_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text("tenants: {acme: {kv_bytes: 2GiB}, banks: {tokens_per_minute: 9}}")
    book = TokenBook(path)
    before = book.kv_bytes
    assert before == {"acme": 2 << 30}
    path.write_text(yaml.safe_dump({"tenants": {"acme": {"kv_bytes": 2 << 30, "max_workflows": 3}}}))
    assert book.refresh()
    assert book.kv_bytes is before
    path.write_text("tenants: {acme: {kv_bytes: 1GiB}}")
    assert book.refresh()
    assert book.kv_bytes == {"acme": 1 << 30}
