"""Audits of workflows on a random small model, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import torch
from engine_harness import make_engine
from engine_reference import VOCAB_SIZE
from scripted_engine import CharFraming, CharTokenizer, LoopWorker

from laban.cluster.audit.auditor import Audit, AuditRequest
from laban.cluster.audit.records import AuditItem, RecordedStep
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.records import WorkflowRecord
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.states import Overrides


class AsciiTokenizer(CharTokenizer):
    vocab_size = VOCAB_SIZE


class AuditRig:
    """Runs a workflow under `exact` and audits it."""

    def __init__(self, num_workers: int = 1) -> None:
        engines = [make_engine(pool_tokens=16384) for _ in range(num_workers)]
        for number, engine in enumerate(engines):
            engine.info = type(engine.info)(
                **{name: getattr(engine.info, name) for name in engine.info.__slots__} | {"worker_id": f"w{number}"}
            )
        self.workers = [LoopWorker(engine) for engine in engines]  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(self.workers)
        self.executor = Executor(self.dispatcher, CharFraming(), AsciiTokenizer())

    async def record(
        self, yaml: str, inputs: dict[str, Any] | None = None, meanwhile: Callable[[str], Awaitable[None]] | None = None
    ) -> tuple[WorkflowRecord, tuple[RecordedStep, ...]]:
        """A run under `exact`; `meanwhile` is given its id."""
        submitted = await self.executor.intake.submit(parse_yaml(yaml), inputs or {}, Overrides("exact"))
        beside = None if meanwhile is None else asyncio.ensure_future(meanwhile(submitted.workflow_id))
        order = []
        async for item in self.executor.watch(submitted.workflow_id):
            result = getattr(item, "result", None)
            if result is not None and result.finish_reason != "workflow" and result.state in ("succeeded", "failed"):
                why = result.error.message if result.error else ""
                order.append(RecordedStep(result.address, result.text, result.token_ids, result.state, why))
        if beside is not None:
            await beside
        return self.executor.get(submitted.workflow_id), tuple(order)

    async def audit(
        self, yaml: str, recorded: tuple[RecordedStep, ...], inputs: dict[str, Any] | None = None, *,
        levels: tuple[str, ...] = ("direct",), num_apart: int = 0,
    ) -> list[AuditItem]:  # fmt: skip
        request = AuditRequest(parse_yaml(yaml), inputs or {}, Overrides(), recorded, levels, num_apart)
        audit = Audit(
            request, partial(self.executor.languages.new_book, ""), self.dispatcher, self.dispatcher.directory, 1000
        )
        async with asyncio.timeout(60):
            return [item async for item in audit.items()]


@asynccontextmanager
async def audit_rig(num_workers: int = 1) -> AsyncIterator[AuditRig]:
    torch.manual_seed(0)
    rig = AuditRig(num_workers)
    rig.executor.start()
    try:
        yield rig
        assert rig.dispatcher.num_outstanding == 0, "a call was left behind"
    finally:
        await rig.executor.stop()
