"""Encodings from one worker's process to another's: whole, with one of the two killed meanwhile, and given back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray_processes import processes
from small_model import save_small_model
from transfer_rig import DIRECT

from laban.actors.calls import Call, CallFinished, Sampling, Source, WorkerReport
from laban.actors.engine.config import EngineConfig
from laban.actors.ports import WorkerLost
from laban.actors.reach import Transport, transport_between
from laban.actors.remote import RemoteSupervisor, RemoteWorker, WorkerPlan
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, extend

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_TOKENS = 3000  # twelve chunks
CHUNK_S = 0.15
LEASE_S = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_model(tmp_path_factory.mktemp("model"))


def plan(worker_id: str, folder: str, num_shards: int = 1, transport: str = "object_store", **env: float) -> WorkerPlan:
    config = EngineConfig(pool_tokens=8192, device="cpu", num_threads=1, transport=transport)
    variables = {f"TEST_{name.upper()}": str(value) for name, value in env.items()}
    num_cpus = 0 if num_shards == 1 else 0.25  # of a placement group each has some
    return WorkerPlan(worker_id, folder, config, "small_model:load", num_shards, num_cpus, env=variables)


def message(number: int) -> tuple[int, ...]:
    draw = random.Random(number)
    return tuple(draw.randrange(32, 127) for _ in range(NUM_TOKENS))


async def until(found: Callable[[WorkerReport], bool], worker: RemoteWorker, timeout_s: float = 60.0) -> WorkerReport:
    async with asyncio.timeout(timeout_s):
        async for report in worker.reports():
            if found(report):
                return report
    raise AssertionError("the reports ended")


async def finished(worker: RemoteWorker, call_id: str) -> CallFinished:
    found: list[CallFinished] = []

    def is_it(report: WorkerReport) -> bool:
        found.extend(e for e in report.events if isinstance(e, CallFinished) and e.call_id == call_id)
        return bool(found)

    await until(is_it, worker)
    return found[0]


async def encoded(worker: RemoteWorker, number: int) -> EncodingSpec:
    worker.submit([Call(f"prefill-{number}", worker.info.namespace, EMPTY_VIEW, 0, message(number), ())])
    return (await finished(worker, f"prefill-{number}")).encoding


def reading(call_id: str, spec: EncodingSpec, holder: RemoteWorker | None = None) -> Call:
    specs = {spec.encoding_id: spec}
    view = extend(EMPTY_VIEW, Placement(spec.encoding_id, 0, 0, spec.num_tokens), specs)
    info = None if holder is None else holder.info
    sources = () if info is None else (Source(spec.encoding_id, info.worker_id, info.epoch, 0.0),)
    sampling = Sampling(max_tokens=16, num_logprobs=2)
    return Call(call_id, spec.namespace, view, spec.num_tokens, (65,), (spec,), sampling, sources=sources)


def asked_inside(worker: RemoteWorker, ask: Callable[[Any], Any]) -> Any:
    """What `ask` makes of the WorkerProcess, in its process."""
    import ray

    return ray.get(worker.as_peer[-1][0].__ray_call__.remote(ask), timeout=20)


def pid_of(worker: RemoteWorker) -> int:
    return int(asked_inside(worker, lambda process: os.getpid()))


async def lends(worker: RemoteWorker, num_leases: int = 1) -> None:
    """Waits until so many transfers read from it, and some chunks more."""
    async with asyncio.timeout(60):
        while asked_inside(worker, lambda process: process._exporting.num_leases) < num_leases:
            await asyncio.sleep(0.02)
    await asyncio.sleep(3 * CHUNK_S)


async def lost(worker: RemoteWorker) -> None:
    with pytest.raises(WorkerLost):
        await until(lambda report: False, worker)


def assert_sure(result: CallFinished) -> None:
    """No two tokens are so close that another order of additions may choose the other."""
    assert min(told.top[0][1] - told.top[1][1] for told in result.logprobs) > 1e-3


def test_a_message_encoded_at_one_worker_is_read_at_another_and_a_killed_one_costs_an_encoding(folder: str) -> None:
    async def scenario() -> None:
        plans = [plan("a", folder, chunk_s=CHUNK_S), plan("b", folder)]
        supervisor = RemoteSupervisor(plans)
        a, b = await supervisor.start_all()
        assert a.info.fetches
        first, second = await encoded(a, 1), await encoded(a, 2)
        expected = []
        for spec in (first, second):
            a.submit([reading(f"alone-{spec.start}", spec)])
            expected.append(await finished(a, f"alone-{spec.start}"))
            assert_sure(expected[-1])
        # Whole.
        b.submit([reading("whole", first, a)])
        whole = await finished(b, "whole")
        assert (whole.tokens_loaded, whole.tokens_reused, whole.tokens_encoded) == (NUM_TOKENS, NUM_TOKENS, 1)
        assert whole.text == expected[0].text
        # From another life of A, which is none.
        third = await encoded(a, 3)
        other = Source(third.encoding_id, "a", "another epoch", 0.0)
        b.submit([replace(reading("none", third), sources=(other,))])
        none = await finished(b, "none")
        assert (none.tokens_loaded, none.tokens_encoded) == (0, NUM_TOKENS + 1)
        # A is killed on the way.
        pid = pid_of(a)
        b.submit([reading("broken", second, a)])
        await lends(a)
        os.kill(pid, signal.SIGKILL)
        broken = await finished(b, "broken")
        assert broken.text == expected[1].text
        assert 1 < broken.tokens_encoded < NUM_TOKENS, "what had come was kept"
        await a.close()
        # It comes back, under another epoch, and is found again, in either direction.
        again = await supervisor.start("a")
        fourth = await encoded(again, 4)
        b.submit([reading("again", fourth, again)])
        assert (await finished(b, "again")).tokens_loaded == NUM_TOKENS
        again.submit([reading("back", first, b)])
        assert (await finished(again, "back")).tokens_loaded == NUM_TOKENS
        # B is killed while it reads: A lets go of what it lent.
        fifth = await encoded(again, 5)
        asked_inside(again, lambda process: setattr(process._exporting, "_lease_s", LEASE_S))
        b.submit([reading("reads", fifth, again)])
        await asyncio.sleep(2 * CHUNK_S)
        assert asked_inside(again, lambda process: process._exporting.num_leases) == 1
        os.kill(pid_of(b), signal.SIGKILL)
        until_s = time.monotonic() + 10 * LEASE_S
        while asked_inside(again, lambda process: process._exporting.num_leases):
            assert time.monotonic() < until_s
            await asyncio.sleep(0.2)
        assert asked_inside(again, lambda process: process._loop._engine.exports.num_open) == 0
        await b.close()
        await again.close()

    asyncio.run(scenario())


def test_each_shard_fetches_from_its_like_and_one_killed_on_the_way_costs_an_encoding(folder: str) -> None:
    async def scenario() -> None:
        supervisor = RemoteSupervisor([plan("a", folder, 2, chunk_s=CHUNK_S), plan("b", folder, 2)])
        a = await supervisor.start("a")
        of_a = set(processes("ShardProcess"))
        b = await supervisor.start("b")
        assert (a.info.num_shards, a.info.fetches) == (2, True)
        first, second = await encoded(a, 1), await encoded(a, 2)
        expected = []
        for number, spec in enumerate((first, second)):
            a.submit([reading(f"alone-{number}", spec)])
            expected.append(await finished(a, f"alone-{number}"))
            assert_sure(expected[-1])
        b.submit([reading("whole", first, a)])
        whole = await finished(b, "whole")
        assert (whole.tokens_loaded, whole.tokens_encoded) == (NUM_TOKENS, 1)
        assert whole.text == expected[0].text
        assert asked_inside(a, lambda process: process._exporting.num_leases) == 0
        # A's other shard is killed on the way, and with it A.
        b.submit([reading("broken", second, a)])
        await lends(a, 2)
        os.kill(of_a.pop(), signal.SIGKILL)
        broken = await finished(b, "broken")
        assert broken.text == expected[1].text
        assert 1 < broken.tokens_encoded < NUM_TOKENS, "what had come in both shards was kept"
        await lost(a)
        for worker in (a, b):
            await worker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", DIRECT)
def test_the_memory_of_a_worker_is_read_until_it_is_killed(folder: str, transport: Transport) -> None:
    async def scenario() -> None:
        plans = [plan("a", folder, 1, transport), plan("b", folder, 1, transport, chunk_s=CHUNK_S)]
        a, b = await RemoteSupervisor(plans).start_all()
        assert transport_between(b.info.reach, a.info.reach) == transport
        first, second = await encoded(a, 1), await encoded(a, 2)
        a.submit([reading("alone", second)])
        expected = await finished(a, "alone")
        assert_sure(expected)
        b.submit([reading("whole", first, a)])
        assert (await finished(b, "whole")).tokens_loaded == NUM_TOKENS
        copies = asked_inside(b, lambda process: process._loop._engine.tiers.tallying.totals())
        assert getattr(copies, f"copies_{transport}").num == 1
        b.submit([reading("broken", second, a)])
        await asyncio.sleep(4 * CHUNK_S)
        os.kill(pid_of(a), signal.SIGKILL)
        broken = await finished(b, "broken")
        assert broken.text == expected.text
        assert 1 < broken.tokens_encoded < NUM_TOKENS, "what had come was kept"
        await a.close()
        await b.close()

    asyncio.run(scenario())
