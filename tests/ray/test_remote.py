"""The executor over real worker processes: losses, slow readers, hosts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from scripted_engine import CharFraming, CharTokenizer

from laban.actors.calls import Call, CallFinished, CallStarted, CallTokens, Sampling
from laban.actors.errors import FailedPrecondition, InvalidInput
from laban.actors.line import Line
from laban.actors.ports import WorkerLost
from laban.actors.remote import (
    LoadingWatch,
    RemoteDirectory,
    RemoteHost,
    RemoteSupervisor,
    RemoteWorker,
    WorkerPlan,
    spawn_directory,
    spawn_worker,
)
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.records import Event, TokenChunk
from laban.cluster.workflow.parse import parse_yaml
from laban.kvstore.encodings import EMPTY_VIEW

pytestmark = pytest.mark.usefixtures("local_ray")

ENGINE = "scripted_engine:ScriptedEngine"


def plan(worker_id: str = "w0", folder: str = "") -> WorkerPlan:
    return WorkerPlan(worker_id, folder, None, ENGINE, num_cpus=0)


def workflow(prefill: str = "", count: int = 1):
    return parse_yaml(f"""
version: 1
name: many
messages: {{task: "What?"}}
steps:
  - {{step: part, for_each: {count}, read: [task], prefill: "#{{{{ index }}}} {prefill}"}}
  - {{step: final, read: [task, part]}}
""")


async def ended(executor: Executor, workflow_id: str) -> list[Event | TokenChunk]:
    async with asyncio.timeout(40):
        return [item async for item in executor.watch(workflow_id)]


def test_importing_the_actors_imports_no_torch():
    code = "import sys, laban.actors.remote; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_worker_killed_mid_call_and_a_killed_directory_lose_nothing(tmp_path):
    import ray

    async def scenario():
        directory_handle = spawn_directory(2)
        directory = RemoteDirectory(directory_handle)
        plans = [replace(plan(worker_id), directory=directory_handle) for worker_id in ("w0", "w1")]
        supervisor = RemoteSupervisor(plans, {each.worker_id: spawn_worker(each) for each in plans})
        up = []
        workers = await supervisor.start_all(lambda info: up.append(info.worker_id))
        assert sorted(up) == ["w0", "w1"]
        dispatcher = Dispatcher(workers, supervisor=supervisor, directory=directory)
        executor = Executor(dispatcher, CharFraming(), CharTokenizer())
        executor.start()
        try:
            marker = tmp_path / "died"
            record = await executor.intake.submit(workflow(f"DIE-ONCE:{marker}", count=4), {})
            items = await ended(executor, record.workflow_id)
            final = executor.get(record.workflow_id)
            assert final.state == "succeeded", final.error
            assert marker.exists()
            parts = [step for step in final.steps if step.step == "part"]
            assert max(step.attempt for step in parts) == 2
            for step in parts:
                chunks = [c for c in items if isinstance(c, TokenChunk) and c.address == step.address]
                assert "".join(c.text for c in chunks if c.attempt == step.attempt) == step.text
            lost = [step for step in parts if step.attempt == 2]
            first = [c for c in items if isinstance(c, TokenChunk) and c.address == lost[0].address and c.attempt == 1]
            assert first, "what the first attempt generated was seen, then voided"

            async def known_epochs() -> list[dict[str, str]]:
                try:
                    shards = await directory.status()
                except ConnectionError:
                    return []
                return [{each.worker_id: each.epoch for each in shard.workers} for shard in shards]

            async def both_known() -> None:
                async with asyncio.timeout(20):
                    while True:
                        epochs = {each.worker_id: each.epoch for each in executor.status().workers if each.alive}
                        if len(epochs) == 2 and await known_epochs() == [epochs, epochs]:
                            return
                        await asyncio.sleep(0.05)

            await both_known()  # the dead worker came back under a new epoch
            for shard in directory_handle.shards:
                ray.kill(shard, no_restart=False)
            record = await executor.intake.submit(workflow(count=4), {})
            await ended(executor, record.workflow_id)
            assert executor.get(record.workflow_id).state == "succeeded"
            await both_known()
        finally:
            await executor.stop()
            directory_handle.end()

    asyncio.run(scenario())


@pytest.fixture(params=["line", "ray"])
def way(request, monkeypatch):
    """How calls and reports go: on one machine by a line, between two through Ray."""

    async def nobody(address: str) -> None:
        return None

    if request.param == "ray":
        monkeypatch.setattr(Line, "connect", nobody)
    return request.param


async def attached(way: str) -> RemoteWorker:
    worker = await RemoteWorker.attach(spawn_worker(plan()), "w0")
    assert worker.has_line == (way == "line")
    return worker


def test_a_slow_reader_gets_everything_in_few_reports(way):
    async def scenario():
        worker = await attached(way)
        try:
            count = 3000
            sampling = Sampling(max_tokens=count, forced=tuple(range(1, count + 1)))
            worker.submit([Call("a", "model/", EMPTY_VIEW, 0, (1,), (), sampling)])
            received, events = 0, []
            async for report in worker.reports():
                received += 1
                assert report.sequence == received
                events += report.events
                if any(isinstance(event, CallFinished) for event in report.events):
                    break
                await asyncio.sleep(0.2)
            assert received < 100, "what the reader does not take is merged at the worker"
            assert isinstance(events[0], CallStarted)
            tokens = [event for event in events if isinstance(event, CallTokens)]
            assert sum((event.token_ids for event in tokens), ()) == sampling.forced
        finally:
            await worker.close()

    asyncio.run(scenario())


def test_a_worker_says_how_far_it_is_while_it_loads(tmp_path):
    go = tmp_path / "go"
    handle = spawn_worker(plan(folder=f"slow:{go}"))
    watch = LoadingWatch(handle)
    assert watch.poll() is None
    until = time.monotonic() + 30
    while watch.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert watch.poll() == ("reading the script", 0.4)
    go.touch()

    async def scenario():
        worker = await asyncio.wait_for(RemoteWorker.attach(handle, "w0"), 30)
        await worker.close()

    asyncio.run(scenario())
    for _ in range(20):  # nothing is raised over a worker that has ended
        assert watch.poll() == ("reading the script", 0.4)
        time.sleep(0.05)


def test_how_workers_are_lost(way):
    async def scenario():
        with pytest.raises(InvalidInput, match="a model that loads"):
            await RemoteWorker.attach(spawn_worker(plan(folder="broken")), "w0")
        with pytest.raises(FailedPrecondition, match="module:name"):
            await RemoteWorker.attach(spawn_worker(WorkerPlan("w0", "", None, "no.such:thing", num_cpus=0)), "w0")
        worker = await attached(way)
        worker.submit([Call("a", "model/", EMPTY_VIEW, 0, tuple(map(ord, "BOOM")), (), Sampling(max_tokens=1))])
        with pytest.raises(WorkerLost, match="the script says so"):
            [report async for report in worker.reports()]
        await worker.close()
        worker = await attached(way)
        worker.submit([Call("a", "model/", EMPTY_VIEW, 0, tuple(map(ord, "DIE")), (), Sampling(max_tokens=1))])
        with pytest.raises(WorkerLost):
            async with asyncio.timeout(20):
                [report async for report in worker.reports()]
        await worker.close()
        worker = await attached(way)
        reading = asyncio.create_task(anext(worker.reports()))
        await asyncio.sleep(0.1)
        worker.submit([object()])  # a batch that the worker cannot take: it is given up
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(reading, 20)
        await worker.close()

    asyncio.run(scenario())


def test_a_host_runs_a_service_by_its_path():
    host = RemoteHost("host_service:Service", "x")
    assert host.wait(30) == "address-of-x"
    host.stop()
    host.stop()
    refused = RemoteHost("host_service:Service", "refuse")
    with pytest.raises(InvalidInput, match="another word"):
        refused.wait(30)
    refused.stop()
