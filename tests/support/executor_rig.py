"""Executors over scripted workers, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.cluster.dispatch import Dispatcher, DispatchLimits
from laban.cluster.executor import Executor, ExecutorLimits
from laban.cluster.lookout import Lookout
from laban.cluster.records import Event, TokenChunk, WorkflowRecord
from laban.cluster.workflow.parse import parse_yaml

FAST = DispatchLimits(restart_delays_s=(0.0, 0.001, 0.002))


class Rig:
    """Workers, a dispatcher and an executor, running; with `ahead` it looks ahead."""

    def __init__(
        self, workers: list[LoopWorker], supervisor: LoopSupervisor | None, limits: ExecutorLimits, ahead: bool = False
    ) -> None:
        self.workers = workers
        self.supervisor = supervisor
        self.dispatcher = Dispatcher(workers, supervisor=supervisor, limits=FAST)
        self.lookout = Lookout(self.dispatcher) if ahead else None
        self.executor = Executor(self.dispatcher, CharFraming(), CharTokenizer(), limits=limits, lookout=self.lookout)

    @property
    def worker(self) -> LoopWorker:
        return self.workers[0]

    async def submit(self, yaml: str, inputs: dict[str, object] | None = None, **options) -> WorkflowRecord:
        return await self.executor.intake.submit(parse_yaml(yaml), inputs or {}, **options)

    async def run(self, yaml: str, inputs: dict[str, object] | None = None, **options) -> WorkflowRecord:
        record = await self.submit(yaml, inputs, **options)
        return await self.end(record.workflow_id)

    async def end(self, workflow_id: str) -> WorkflowRecord:
        await self.items(workflow_id)
        return self.executor.get(workflow_id)

    async def items(self, workflow_id: str, after: int = 0) -> list[Event | TokenChunk]:
        async with asyncio.timeout(10):
            return [item async for item in self.executor.watch(workflow_id, after)]


@asynccontextmanager
async def rig(
    num_workers: int = 1, *, supervised: bool = True, failures: int = 0, ahead: bool = False, **limits: int
) -> AsyncIterator[Rig]:
    workers = [LoopWorker(ScriptedEngine(worker_id=f"w{n}")) for n in range(num_workers)]
    supervisor = LoopSupervisor(failures) if supervised else None
    made = Rig(workers, supervisor, ExecutorLimits(**limits), ahead)
    made.executor.start()
    try:
        yield made
        assert made.dispatcher.num_outstanding == 0 or made.worker.paused, "a call was left behind"
    finally:
        await made.executor.stop()


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def results(record: WorkflowRecord) -> dict[str, object]:
    return {step.address: step for step in record.steps}
