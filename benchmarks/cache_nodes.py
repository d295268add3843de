"""The ring as workflows, on two workers on two Ray nodes: what is encoded, next to one worker that keeps everything.

The nodes are processes of this machine, each with room for one worker. The workers have small pools, and the usual
tiers below. Outputs are of fixed lengths, so that every policy runs the same steps. Prefetches are off: no step counts
what they encode, and here all that is encoded is encoded for a step. One workflow after the other, and two at once,
which come to the same prompts at the same time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from report import Clock, Row
from workloads import Writer

from laban.actors.models import prepare_default_model
from laban.actors.tokenizer import Tokenizer
from laban.cluster.client import Client
from laban.cluster.config import EngineSection, LabanConfig, MetricsSection, RaySection, RoutingSection, ServerSection
from laban.cluster.launch import QUIET_RAY, start_cluster
from laban.cluster.workflow.builder import Workflow

NODES = 2
POLICIES = ("cost", "round_robin")
TARGET = 1.1
NODE = {"num_cpus": 1, "object_store_memory": 512 << 20, "include_dashboard": False}


@dataclass(frozen=True, slots=True)
class Load:
    """`flows` workflows of the same agents in sequence: each reads a task and what the last one said.

    In tokens: the agents' prompts, the task, what each says, and a worker's pool, which has room for four prompts.
    """

    flows: int = 6
    agents: int = 10
    prompt: int = 128
    task: int = 8
    said: int = 8
    pool_tokens: int = 800


QUICK = Load(flows=2, agents=4, prompt=48, pool_tokens=400)


@dataclass(frozen=True, slots=True)
class Total:
    """Of all steps, in tokens."""

    encoded: int
    reused: int
    loaded: int
    read: int


def workflow(number: int, load: Load, writer: Writer, seed: int) -> dict[str, object]:
    """The same as `ring`, as a workflow: what it is given and what is said in it is its own, the prompts are not."""

    def text(name: str, num_tokens: int) -> str:
        return writer.words(num_tokens, random.Random(f"{seed} {name}"))

    made = Workflow(f"ring_{number}", fidelity="direct")
    made.message("task", text(f"task {number}", load.task))
    before: list[str] = []
    for at in range(load.agents):
        made.agent(f"agent_{at}", text(f"agent {at}", load.prompt))
        forced = text(f"said {number} {at}", load.said)
        sampling = {"max_tokens": load.said, "temperature": 0, "forced_text": forced}
        made.step(f"say_{at}", agent=f"agent_{at}", read=["task", *before], sampling=sampling)
        before = [f"say_{at}"]
    made.output("said", before[0])
    return made.to_dict()


def run_all(client: Client, documents: list[dict[str, object]], at_once: int) -> Total:
    """So many at a time. Raises RuntimeError for a failure."""
    with ThreadPoolExecutor(at_once) as threads:
        records = list(threads.map(lambda each: client.wait(client.submit(each).workflow_id), documents))
    for record in records:
        if record.state != "succeeded":
            raise RuntimeError(f"{record.name}: {record.state}, {record.error}")
    steps = [step for record in records for step in record.steps]
    return Total(
        sum(step.tokens_encoded for step in steps),
        sum(step.tokens_reused for step in steps),
        sum(step.tokens_loaded for step in steps),
        sum(step.tokens_read for step in steps),
    )


@contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """A Ray cluster of `count` nodes on this machine; its address."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a second node is not let in
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        for _ in range(count - 1):
            cluster.add_node(**NODE)
        yield cluster.address
    finally:
        cluster.shutdown()


def measure_policy(
    documents: list[dict[str, object]], policy: str, nodes: int, pool_tokens: int, at_once: int
) -> Total:
    """On a cluster of its own with a worker a node."""
    with ray_nodes(nodes) as address:
        config = LabanConfig(
            workers=nodes,
            engine=EngineSection(pool_tokens=pool_tokens, num_threads=1, device="cpu"),
            routing=RoutingSection(policy=policy, prefetch=False),
            ray=RaySection(address=address),
            server=ServerSection(port=0),
            metrics=MetricsSection(port=None),
        )
        with start_cluster(config) as served, Client(served.address) as client:
            return run_all(client, documents, at_once)


def measure_nodes(clock: Clock, *, quick: bool = False, seed: int = 1) -> list[Row]:
    """Tokens encoded under each policy, and by one worker that keeps everything."""
    load = QUICK if quick else Load()
    writer = Writer(Tokenizer.from_folder(prepare_default_model(lambda doing, share: clock.say(doing))))
    documents = [workflow(number, load, writer, seed) for number in range(load.flows)]
    rows: list[Row] = []
    for at_once, name in ((1, "nodes"), (2, "nodes_two_at_once")):
        clock.say(f"{name}: one worker with room for everything")
        alone = measure_policy(documents, "cost", 1, 16 * load.pool_tokens, at_once)
        rows.append(Row(f"{name}.one_worker.encoded", float(alone.encoded), "tokens", better="lower"))
        for policy in POLICIES:
            clock.say(f"{name}: two workers, {policy}")
            total = measure_policy(documents, policy, NODES, load.pool_tokens, at_once)
            target = TARGET if policy == "cost" else None
            ratio = total.encoded / alone.encoded
            rows += [
                Row(f"{name}.{policy}.encoded", float(total.encoded), "tokens", better="lower"),
                Row(f"{name}.{policy}.loaded", float(total.loaded), "tokens", better="lower"),
                Row(f"{name}.{policy}.encoded_over_one_worker", ratio, "ratio", target, "lower"),
            ]
    return rows
