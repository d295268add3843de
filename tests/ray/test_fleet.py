"""Workers that join and leave while workflows run, as real processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from scripted_engine import CharFraming, CharTokenizer

from laban.actors.errors import Exhausted, FailedPrecondition
from laban.actors.remote import RemoteDirectory, RemoteSupervisor, WorkerPlan, spawn_directory
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.workflow.parse import parse_yaml

pytestmark = pytest.mark.usefixtures("local_ray")

PLAN = WorkerPlan("worker-0", "", None, "scripted_engine:ScriptedEngine", num_cpus=0)
MANY = """
version: 1
name: many
messages: {task: "What?"}
steps:
  - {step: part, for_each: 40, read: [task], prefill: "#{{ index }}"}
  - {step: final, read: [task, part]}
"""


def test_a_worker_joins_and_takes_the_place_of_one_that_leaves() -> None:
    async def scenario() -> None:
        handle = spawn_directory(1)
        first = replace(PLAN, directory=handle)
        supervisor = RemoteSupervisor([first], another=lambda name, model, number: replace(first, worker_id=name))
        dispatcher = Dispatcher(await supervisor.start_all(), supervisor=supervisor, directory=RemoteDirectory(handle))
        executor = Executor(dispatcher, CharFraming(), CharTokenizer())
        executor.start()
        try:
            with pytest.raises(FailedPrecondition, match="last worker"):
                dispatcher.fleet.drain("worker-0")
            record = await executor.intake.submit(parse_yaml(MANY), {})
            added = await dispatcher.fleet.add_worker()
            assert (added.worker_id, added.alive) == ("worker-1", True)
            async with asyncio.timeout(30):
                items = [item async for item in dispatcher.fleet.drain_worker("worker-0")]
                assert items[-1].done
                assert [worker.worker_id for worker in dispatcher.workers()] == ["worker-1"]
                async for _ in executor.watch(record.workflow_id):
                    continue
            assert executor.get(record.workflow_id).state == "succeeded"
            assert executor.get(record.workflow_id).steps[-1].attempt == 1  # nothing was lost on the way
            again = await executor.intake.submit(parse_yaml(MANY), {})
            async for _ in executor.watch(again.workflow_id):
                continue
            assert {step.worker for step in executor.get(again.workflow_id).steps} == {"worker-1"}
        finally:
            await executor.stop()
            handle.end()

    asyncio.run(scenario())


def test_a_worker_that_ray_has_no_room_for_is_refused_at_once() -> None:
    async def scenario() -> None:
        large = RemoteSupervisor(
            [], another=lambda name, model, number: replace(PLAN, num_cpus=1.0, num_shards=64 + number)
        )
        with pytest.raises(Exhausted, match=r"no room for another worker: \S+ CPUs are free, expected 65"):
            await large.start("worker-1")
        with pytest.raises(Exhausted, match="expected 65"):  # and again: it was not taken for planned
            await large.start("worker-1")
        on_gpus = RemoteSupervisor([], another=lambda name, model, number: replace(PLAN, num_gpus=1.0))
        with pytest.raises(Exhausted, match="0 GPUs are free, expected 1"):
            await on_gpus.start("worker-1")
        with pytest.raises(FailedPrecondition, match="none of the workers planned"):
            await RemoteSupervisor([PLAN]).start("worker-1")

    asyncio.run(scenario())
