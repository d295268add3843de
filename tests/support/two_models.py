"""Two scripted models in one executor, which write differently: `one` is the default."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from executor_rig import FAST
from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine, encode

from laban.cluster.dispatch import Dispatcher, DispatchLimits
from laban.cluster.executor import Executor
from laban.cluster.lookout import Lookout
from laban.cluster.messages import Voice
from laban.cluster.records import WorkflowRecord
from laban.cluster.workflow.parse import parse_yaml


class AngleFraming(CharFraming):
    """`$` is the root, `<role:name>text;` a message."""

    def __init__(self) -> None:
        super().__init__(root="$")

    def header(self, role: str, name: str | None = None, *, first: bool = False, prefill: str = "") -> tuple[int, ...]:
        return encode(f"<{role}:{name or ''}>{prefill}")

    def message(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> tuple[int, ...]:
        return encode(f"<{role}:{name or ''}>{text};")

    def terminator(self, role: str, *, after_stop_token: bool) -> tuple[int, ...]:
        return encode(";")


class TwoSupervisor(LoopSupervisor):
    async def start(self, worker_id: str, model: str = "") -> LoopWorker:
        made = LoopWorker(scripted(model or "one", worker_id))
        self.made.append(made)
        return made


@dataclass
class Two:
    workers: dict[str, LoopWorker]
    dispatcher: Dispatcher
    executor: Executor
    lookout: Lookout

    async def run(self, yaml: str, **options: object) -> WorkflowRecord:
        record = await self.executor.intake.submit(parse_yaml(yaml), {}, **options)  # type: ignore[arg-type]
        async for _ in self.executor.watch(record.workflow_id):
            pass
        return self.executor.get(record.workflow_id)


def scripted(model: str, worker_id: str, max_context: int = 2000) -> ScriptedEngine:
    return ScriptedEngine(worker_id=worker_id, namespace=f"{model}/float32", model=model, max_context=max_context)


@asynccontextmanager
async def two_models(
    workers: tuple[str, ...] = ("one", "two"), *, context_of_two: int = 2000, limits: DispatchLimits = FAST
) -> AsyncIterator[Two]:
    """`workers` are the models of w0, w1 and so on."""
    sizes = {"one": 2000, "two": context_of_two}
    made = {f"w{at}": LoopWorker(scripted(model, f"w{at}", sizes[model])) for at, model in enumerate(workers)}
    dispatcher = Dispatcher(list(made.values()), supervisor=TwoSupervisor(), limits=limits, default_model="one")
    lookout = Lookout(dispatcher)
    voices = {"two": Voice(AngleFraming(), CharTokenizer())}
    executor = Executor(dispatcher, CharFraming(), CharTokenizer(), lookout=lookout, voices=voices)
    executor.start()
    try:
        yield Two(made, dispatcher, executor, lookout)
    finally:
        await executor.stop()
