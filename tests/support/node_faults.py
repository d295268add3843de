"""Workflows on several Ray nodes while processes are killed under them: `python node_faults.py FOLDER` with a model.

Nodes are processes of this machine. Loads and transfers are slowed down, so that a kill comes in the middle of some.
Every workflow has to end as it did undisturbed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.cluster_utils import Cluster
from scripted_engine import CharFraming, CharTokenizer

from laban.actors.engine.config import EngineConfig
from laban.actors.remote import RemoteDirectory, RemoteSupervisor, WorkerPlan, spawn_directory
from laban.cluster.dispatch import Dispatcher, DispatchLimits
from laban.cluster.executor import Executor
from laban.cluster.lookout import Lookout
from laban.cluster.workflow.parse import parse_yaml

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
ENGINE = EngineConfig(pool_tokens=4096, device="cpu", num_threads=1, link_bytes_per_s=4e6, transport="object_store")
SLOW = {"TEST_CHUNK_S": "0.1", "TEST_TOKEN_S": "0.001"}
NUM_FLOWS = 4
SURE = 4e-4
"""Of two tokens further apart none takes the other's place because sums were added in another order."""

FLOW = parse_yaml("""
version: 1
name: flow
fidelity: exact
sampling: {max_tokens: 10, logprobs: 2}
inputs: {doc: {}, task: {}}
messages: {doc: "{{ doc }}", task: "{{ task }}"}
steps:
  - {step: intro, read: [doc]}
  - {step: part, for_each: 3, read: [doc, intro, task], prefill: "#{{ index }}"}
  - {step: final, read: [doc, task, part]}
""")


def text(seed: int, size: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(size))


DOCS = [text(200 + number, 900) for number in range(2)]
TASKS = [text(210 + number, 120) for number in range(NUM_FLOWS)]


@dataclass
class Nodes:
    cluster: Cluster
    supervisor: RemoteSupervisor
    dispatcher: Dispatcher
    executor: Executor
    directory: Any
    expected: list[dict[str, str]]
    num_rounds: int = 0

    async def submit(self, tenant: str) -> list[str]:
        flows = [{"doc": DOCS[number % len(DOCS)], "task": TASKS[number]} for number in range(NUM_FLOWS)]
        return [(await self.executor.intake.submit(FLOW, flow, tenant=tenant)).workflow_id for flow in flows]

    async def texts(self, workflow_ids: list[str]) -> list[dict[str, str]]:
        """Of every step, by its address."""
        async with asyncio.timeout(90):
            for workflow_id in workflow_ids:
                async for _ in self.executor.watch(workflow_id):
                    continue
        records = [self.executor.get(workflow_id) for workflow_id in workflow_ids]
        for record in records:
            assert record.state == "succeeded", record.error
        return [{step.address: step.text for step in record.steps} for record in records]

    async def round(self, name: str, disturb: Callable[[], Awaitable[None]] | None = None) -> None:
        """Workflows of a tenant that nothing was encoded for yet, disturbed on their way."""
        self.num_rounds += 1
        began_s = time.monotonic()
        workflow_ids = await self.submit(f"tenant-{self.num_rounds}")
        if disturb is not None:
            await disturb()
            assert any(self.executor.get(each).state == "running" for each in workflow_ids), f"{name} too late"
        assert await self.texts(workflow_ids) == self.expected, name
        attempts = [step.attempt for each in workflow_ids for step in self.executor.get(each).steps]
        say(
            f"{name}: {time.monotonic() - began_s:.1f} s, {sum(a > 1 for a in attempts)} steps of {len(attempts)} again"
        )

    def inside(self, worker_id: str, ask: Callable[[Any], Any]) -> Any:
        """What `ask` makes of the WorkerProcess, in its process; None if that is gone."""
        worker = self.supervisor._up.get(worker_id)
        try:
            return None if worker is None else ray.get(worker.as_peer[-1][0].__ray_call__.remote(ask), timeout=5)
        except ray.exceptions.RayError:
            return None

    def up(self) -> list[str]:
        return [worker.worker_id for worker in self.dispatcher.workers() if worker.alive]

    def off_head(self) -> list[str]:
        """Workers whose node may die without the driver."""
        others = {node.node_id for node in self.cluster.worker_nodes}
        return [each for each in self.up() if self.node_of(each) in others]

    def node_of(self, worker_id: str) -> str:
        return str(self.inside(worker_id, lambda process: ray.get_runtime_context().get_node_id()))

    async def sending(self, among: list[str] | None = None) -> str:
        """A worker that is in the middle of a transfer to another one."""
        return await self._found(lambda process: process._exporting.num_leases, among)

    async def loading(self) -> str:
        """A worker that is in the middle of a load from its host memory."""
        return await self._found(lambda process: process._loop._engine.scheduler.loads.active, None)

    async def _found(self, is_it: Callable[[Any], Any], among: list[str] | None) -> str:
        until_s = time.monotonic() + 30
        while time.monotonic() < until_s:
            for worker_id in among or self.up():
                if self.inside(worker_id, lambda process: bool(is_it(process))):
                    return worker_id
            await asyncio.sleep(0.01)
        raise AssertionError("nothing of the kind goes on")

    def kill(self, worker_id: str) -> None:
        pid = self.inside(worker_id, lambda process: os.getpid())
        assert pid
        os.kill(pid, signal.SIGKILL)

    def kill_directory(self) -> None:
        for shard in self.directory.shards:
            pid = ray.get(shard.__ray_call__.remote(lambda process: os.getpid()))
            os.kill(pid, signal.SIGKILL)

    def kill_node_of(self, worker_id: str) -> None:
        (node,) = [node for node in self.cluster.worker_nodes if node.node_id == self.node_of(worker_id)]
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    async def until_up(self, count: int) -> None:
        """A round may end before it is known that a node is lost: what was on it was only sending."""
        async with asyncio.timeout(60):
            while len(self.up()) != count:
                await asyncio.sleep(0.1)

    async def check(self) -> None:
        """Nothing stays pinned or gets lost where nothing runs."""
        for worker in self.dispatcher.workers():
            until_s = time.monotonic() + 30
            while worker.alive and (unsound := self.inside(worker.worker_id, _unsound)):
                assert time.monotonic() < until_s, f"{worker.worker_id}: {unsound}"
                await asyncio.sleep(0.2)


def _unsound(process: Any) -> str:
    engine = process._loop._engine
    engine.store.check_integrity()
    engine.tiers.host.check_integrity()
    pinned = [str(entry) for store in (engine.store, engine.tiers.host) for entry in store.entries() if entry.pins]
    leases = process._exporting.num_leases
    return f"{leases} leases, {pinned}" if pinned or leases else ""


def say(what: str) -> None:
    print(what, flush=True)


async def play(cluster: Cluster, folder: str) -> None:
    handle = spawn_directory(2)
    first = WorkerPlan("worker-0", folder, ENGINE, "small_model:load", num_cpus=1, env=SLOW, directory=handle)
    plans = [first, replace(first, worker_id="worker-1")]
    supervisor = RemoteSupervisor(plans, another=lambda name, model, number: replace(first, worker_id=name))
    dispatcher = Dispatcher(
        await supervisor.start_all(),
        supervisor=supervisor,
        directory=RemoteDirectory(handle),
        limits=DispatchLimits(max_attempts=5, drain_timeout_s=20.0),
    )
    executor = Executor(dispatcher, CharFraming(), CharTokenizer(), lookout=Lookout(dispatcher))
    executor.start()
    nodes = Nodes(cluster, supervisor, dispatcher, executor, handle, [])
    try:
        await undisturbed(nodes)
        await on_two_nodes(nodes)
        await on_four_nodes(nodes)
        await nodes.check()
    finally:
        await executor.stop()
        handle.end()


async def undisturbed(nodes: Nodes) -> None:
    workflow_ids = await nodes.submit("undisturbed")
    nodes.expected = await nodes.texts(workflow_ids)
    steps = [step for each in workflow_ids for step in nodes.executor.get(each).steps]
    apart = min(told.top[0][1] - told.top[1][1] for step in steps for told in step.logprobs)
    say(f"tokens are {apart:.1e} apart or more")
    assert apart >= SURE
    assert len({nodes.node_of(worker_id) for worker_id in nodes.up()}) == 2


async def on_two_nodes(nodes: Nodes) -> None:
    async def kill_sender() -> None:
        nodes.kill(await nodes.sending())

    async def kill_receiver() -> None:
        sender = await nodes.sending()
        nodes.kill(next(each for each in nodes.up() if each != sender))

    async def kill_directory() -> None:
        await nodes.sending()
        nodes.kill_directory()

    async def kill_while_loading() -> None:
        nodes.kill(await nodes.loading())

    await nodes.round("sender killed", kill_sender)
    await nodes.until_up(2)
    await nodes.round("receiver killed", kill_receiver)
    await nodes.until_up(2)
    await nodes.round("directory killed", kill_directory)
    await nodes.round("killed while it loads", kill_while_loading)
    await nodes.until_up(2)


async def on_four_nodes(nodes: Nodes) -> None:
    async def kill_node_and_directory() -> None:
        nodes.kill_node_of(await nodes.sending(among=nodes.off_head()))
        nodes.kill_directory()

    async def join() -> None:
        for _ in range(3):  # in the place of the one that was lost, and two more
            nodes.cluster.add_node(wait=False, **NODE)
            await asyncio.sleep(0)
        while sum(node["Alive"] for node in ray.nodes()) < 4:
            await asyncio.sleep(0.1)
        await asyncio.gather(*(nodes.dispatcher.fleet.add_worker(f"worker-{number}") for number in (2, 3)))
        await nodes.until_up(4)

    async def kill_node_and_drain() -> None:
        lost = await nodes.sending(among=nodes.off_head())
        nodes.kill_node_of(lost)
        leaving = next(each for each in nodes.up() if each != lost)
        await nodes.dispatcher.fleet.drain(leaving)
        assert leaving not in nodes.up()

    await nodes.round("node and directory killed", kill_node_and_directory)
    await nodes.until_up(1)
    joining = asyncio.create_task(join())
    while not joining.done():
        await nodes.round("nodes and workers join")
    await joining
    assert len({nodes.node_of(worker_id) for worker_id in nodes.up()}) == 4
    await nodes.round("node killed, another worker drained", kill_node_and_drain)
    await nodes.until_up(2)


def main(folder: str) -> None:
    began_s = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        say(f"nodes: {time.monotonic() - began_s:.1f} s")
        asyncio.run(play(cluster, folder))
    finally:
        ray.shutdown()
        cluster.shutdown()
    say(f"all: {time.monotonic() - began_s:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1])
