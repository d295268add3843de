"""A worker of three shards through Ray: it answers as one shard does, and dies and comes back as a whole."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from ray_processes import processes

from laban.actors.calls import Call, CallFinished, Sampling
from laban.actors.engine.config import EngineConfig
from laban.actors.errors import InvalidInput, Unavailable
from laban.actors.models import prepare_default_model
from laban.actors.ports import WorkerLost
from laban.actors.remote import RemoteSupervisor, RemoteWorker, WorkerPlan, spawn_worker
from laban.cluster.config import LabanConfig
from laban.cluster.launch import start_cluster
from laban.kvstore.encodings import EMPTY_VIEW

pytestmark = pytest.mark.usefixtures("local_ray")

CONFIG = EngineConfig(pool_tokens=1024, device="cpu", num_threads=1)
TOLERANCE = 2e-4  # of log-probabilities
PROMPT = tuple(range(400, 460))
GREEDY = Call("greedy", "n", EMPTY_VIEW, 0, PROMPT, (), Sampling(max_tokens=12, num_logprobs=5))


def plan(num_shards: int = 3) -> WorkerPlan:
    folder = str(prepare_default_model())  # 9 query and 3 KV heads
    return WorkerPlan("w0", folder, CONFIG, num_shards=num_shards, num_cpus=0.5)


async def until_gone(timeout_s: float = 20.0, *names: str) -> None:
    """Until no process, of these or of workers, and no placement group is left."""
    from ray.util import placement_group_table

    def left() -> Any:
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        return processes(*names), groups

    async with asyncio.timeout(timeout_s):
        while any(left()):
            await asyncio.sleep(0.1)


async def finished(worker: RemoteWorker, call: Call) -> CallFinished:
    worker.submit([call])
    async for report in worker.reports():
        for event in report.events:
            if isinstance(event, CallFinished):
                return event
    raise AssertionError("the reports ended")


def alone(call: Call) -> CallFinished:
    """What one shard, in this process, answers."""
    import torch

    from laban.actors.engine.load import load_engine

    before = torch.get_num_threads()
    engine = load_engine(plan().model_folder, CONFIG)
    torch.set_num_threads(before)
    engine.submit(call)
    while engine.has_work():
        for event in engine.step().events:
            if isinstance(event, CallFinished):
                return event
    raise AssertionError("the call did not finish")


def assert_same(got: CallFinished, expected: CallFinished) -> None:
    assert got.generated == expected.generated
    assert got.text == expected.text
    for one, other in zip(got.logprobs, expected.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
        assert dict(one.top) == pytest.approx(dict(other.top), abs=TOLERANCE)


def test_three_shards_answer_as_one_and_die_and_come_back_together() -> None:
    expected = alone(GREEDY)

    async def scenario() -> None:
        supervisor = RemoteSupervisor([plan()])
        worker = await supervisor.start("w0")
        assert worker.info.num_shards == 3
        assert len(processes("ShardProcess")) == 2
        assert_same(await finished(worker, GREEDY), expected)
        # One is killed in the middle of a call.
        endless = Call("endless", "n", EMPTY_VIEW, 0, PROMPT, (), Sampling(max_tokens=900))
        worker.submit([endless])
        reports = worker.reports()
        await anext(reports)
        began = time.monotonic()
        os.kill(min(processes("ShardProcess")), signal.SIGKILL)
        with pytest.raises(WorkerLost):
            [report async for report in reports]
        assert time.monotonic() - began < 15
        await until_gone()
        again = await supervisor.start("w0")
        assert again.info.epoch != worker.info.epoch
        assert_same(await finished(again, GREEDY), expected)
        await again.close()
        await until_gone()

    asyncio.run(scenario())


def test_a_shard_that_dies_while_it_loads_or_idles_takes_the_worker_along() -> None:
    async def killed_while_loading() -> None:
        loading = asyncio.create_task(RemoteWorker.attach(spawn_worker(plan()), "w0"))
        async with asyncio.timeout(30):
            while not processes("ShardProcess"):
                await asyncio.sleep(0.1)
        os.kill(max(processes("ShardProcess")), signal.SIGKILL)
        with pytest.raises(WorkerLost, match="while it loaded"):
            await asyncio.wait_for(loading, 30)
        await until_gone()

    async def killed_while_idle() -> None:
        worker = await RemoteWorker.attach(spawn_worker(plan()), "w0")
        reading = asyncio.create_task(anext(worker.reports()))
        await asyncio.sleep(0.2)
        os.kill(max(processes("ShardProcess")), signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"shard [12] ended"):
            await asyncio.wait_for(reading, 15)
        await until_gone()

    asyncio.run(killed_while_loading())
    asyncio.run(killed_while_idle())


def test_a_model_that_takes_too_long_to_load_ends_the_start() -> None:
    fields = {"limits": {"start_timeout_s": 0.01}, "server": {"port": 0}, "journal": {"url": "none"}}
    with pytest.raises(Unavailable, match=r"limits\.start_timeout_s: the workers were not up after 0\.01 s"):
        start_cluster(LabanConfig.model_validate(fields | {"http": {"port": None}, "metrics": {"port": None}}))
    # The workers load still: where nobody ends them they live until they are through, 10 seconds and more.
    asyncio.run(until_gone(5.0, "WorkerProcess", "ShardProcess", "HostProcess", "DirectoryProcess"))


def test_heads_that_do_not_divide_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[WorkerPlan] = []
    monkeypatch.setattr("laban.actors.remote.spawn_worker", started.append)
    config = LabanConfig.model_validate({"engine": {"shards": 2}, "server": {"port": 0}})
    with pytest.raises(InvalidInput, match=r"engine\.shards: must divide the model's 9 query heads \(got 2\)"):
        start_cluster(config)
    assert not started
