"""Executors with a journal that can be killed at any write, and started again on what was written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from executor_rig import FAST
from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.actors.errors import LabanError, Unavailable
from laban.cluster.audit.resolving import Levels
from laban.cluster.config_grants import GrantSection
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor, ExecutorLimits
from laban.cluster.grants import NO_GRANTS
from laban.cluster.journal import Journal
from laban.cluster.journal_engine import JournalAway
from laban.cluster.journal_records import Deletion, Ending, Line, Stored, Submission, Write
from laban.cluster.journal_store import Taken
from laban.cluster.lookout import Lookout
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.records import Event, Lease, TokenChunk, WorkflowRecord
from laban.cluster.traces import NO_TRACES, Traces
from laban.cluster.workflow.parse import parse_dict, parse_yaml


class MemoryStore:
    """Keeps every write in order, so that any prefix of them can be started from. Implements Store.

    `fault` is asked before each transaction what goes wrong: "" nothing, "before" and "after" it is written.
    """

    def __init__(self, writes: Sequence[Write] = (), fault: Callable[[], str] = lambda: "") -> None:
        self.writes: list[Write] = []
        self.num_transactions = 0
        self.fault = fault
        self._keys: set[tuple[object, ...]] = set()
        self._add(writes)

    member_id = ""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def write(self, writes: Sequence[Write]) -> Mapping[str, Taken]:
        self.num_transactions += 1
        fault = self.fault()
        if fault != "before":
            self._add(writes)
        if fault:
            raise JournalAway("the test says so")
        return {}

    def load(self) -> list[Stored]:
        stored: dict[str, Stored] = {}
        lines: dict[str, list[Line]] = {}
        for write in self.writes:
            if isinstance(write, Submission):
                stored[write.workflow_id] = Stored(write)
            elif isinstance(write, Line):
                lines.setdefault(write.workflow_id, []).append(write)
            elif isinstance(write, Ending):
                found = stored[write.workflow_id]
                stored[write.workflow_id] = Stored(found.submission, archive=write.archive)
            else:
                stored.pop(write.workflow_id, None)
        return [
            found if found.archive else Stored(found.submission, tuple(lines.get(workflow_id, ())))
            for workflow_id, found in stored.items()
        ]

    def _add(self, writes: Sequence[Write]) -> None:
        for write in writes:
            key = (type(write), write.workflow_id, getattr(write, "number", 0))
            if key not in self._keys or isinstance(write, Deletion | Ending):
                self._keys.add(key)
                self.writes.append(write)


class Server:
    """An executor over a scripted worker. `kill` leaves what is not written unwritten."""

    def __init__(
        self,
        store: Any,
        *,
        namespace: str = "model",
        ahead: bool = False,
        traces: Traces = NO_TRACES,
        meter: Meter = NO_METER,
        levels: Levels | None = None,
        grants: Mapping[str, GrantSection] = NO_GRANTS,
        **limits: Any,
    ) -> None:
        self.store = store
        self.worker = LoopWorker(ScriptedEngine(worker_id="w0", namespace=namespace))
        self.dispatcher = Dispatcher([self.worker], supervisor=LoopSupervisor(), limits=FAST, traces=traces)
        self.journal = Journal(store, delays_s=(0.001, 0.002))
        lookout = Lookout(self.dispatcher, meter=meter) if ahead else None
        self.executor = Executor(
            self.dispatcher,
            CharFraming(),
            CharTokenizer(),
            journal=self.journal,
            traces=traces,
            lookout=lookout,
            levels=levels,
            grants=grants,
            limits=ExecutorLimits(**limits),
        )
        self._handling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.executor.start()
        await self.executor.intake.restore(self.store.load())

    async def stop(self) -> None:
        if self._handling is not None:
            self._handling.cancel()
        await self.executor.stop()

    def handle(self, tools: Sequence[str]) -> None:
        """Answer external steps of these tools, by what they are called."""
        self._handling = asyncio.get_running_loop().create_task(self._handle(tools))

    async def _handle(self, tools: Sequence[str]) -> None:
        lease: Lease | None = None
        while True:
            try:
                lease = lease or await self.executor.lease_step(tools, handler="hal", wait_s=5)
                if lease is not None:
                    text = f"word: ok score: {len(lease.address)} {lease.address}"
                    await self.executor.complete_step(lease.workflow_id, lease.address, text, lease_id=lease.lease_id)
                lease = None
            except Unavailable:  # the lease is still good for the same again
                await asyncio.sleep(0.001)
            except LabanError:
                lease = None
            await asyncio.sleep(0)

    async def submit(self, workflow: str | dict[str, Any], **options: Any) -> WorkflowRecord:
        made = parse_yaml(workflow) if isinstance(workflow, str) else parse_dict(workflow)
        return await self.executor.intake.submit(made, {}, **options)

    async def items(self, workflow_id: str, after: int = 0) -> list[Event | TokenChunk]:
        async with asyncio.timeout(20):
            return [item async for item in self.executor.watch(workflow_id, after)]

    async def events(self, workflow_id: str, after: int = 0) -> list[Event]:
        return [item for item in await self.items(workflow_id, after) if isinstance(item, Event)]

    def shown(self, workflow_id: str) -> list[Event]:
        """The events so far."""
        return list(self.executor.shelf.find(workflow_id).board.feed.events)


@asynccontextmanager
async def server(store: Any, **options: Any) -> AsyncIterator[Server]:
    made = Server(store, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
