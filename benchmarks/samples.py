"""One measured run of a workload by one arm, and the arms that go through Laban's own cluster."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from statistics import median

from texts import FreshRun, document

from laban.cluster.client import Client
from laban.cluster.records import Event, TokenChunk
from laban.cluster.workflow.fidelity import Fidelity


@dataclass(frozen=True, slots=True)
class Sample:
    """Times in seconds. `ttft_s` is the sum over all steps, from ready to first token: as the server tells it for
    Laban's arms, as the caller sees it for peers. `seen_ttft_s` is as the caller sees it for everyone."""

    workload: str
    arm: str
    repetition: int
    ttft_s: float
    seen_ttft_s: float
    wall_s: float
    tokens_encoded: int
    tokens_reused: int
    tokens_read: int


@dataclass(frozen=True, slots=True)
class LabanArm:
    """How an arm asks for a workload: a fidelity, an order of reads, and whether sharing is made impossible."""

    fidelity: Fidelity
    shared_first: bool = False
    salted: bool = False


LABAN_ARMS = {
    "reencode": LabanArm("exact", salted=True),
    "prefix": LabanArm("exact"),
    "prefix_shared_first": LabanArm("exact", shared_first=True),
    "direct": LabanArm("direct"),
}


def run_on_laban(client: Client, run: FreshRun, name: str, repetition: int) -> Sample:
    """Raises RuntimeError if the workflow does not succeed at exactly the forced lengths."""
    arm = LABAN_ARMS[name]
    workflow = document(run, arm.fidelity, shared_first=arm.shared_first, salted=arm.salted)
    ready: dict[str, float] = {}
    first: dict[str, float] = {}
    workflow_id = ""
    began = time.perf_counter()
    with closing(client.run(workflow)) as items:
        for item in items:
            workflow_id = item.workflow_id
            if isinstance(item, Event) and item.kind == "step_state" and item.step_state == "ready":
                ready.setdefault(item.address, time.perf_counter())
            elif isinstance(item, TokenChunk) and item.token_ids:
                first.setdefault(item.address, time.perf_counter())
    wall_s = time.perf_counter() - began
    record = client.get(workflow_id)
    lengths = {step.key: step.num_tokens for step in run.workload.steps}
    made = {step.address: step.tokens_generated for step in record.steps}
    if record.state != "succeeded" or made != lengths:
        raise RuntimeError(f"{run.workload.name}/{name}: {record.state}, {record.error}, {made} of {lengths}")
    return Sample(
        run.workload.name,
        name,
        repetition,
        record.ttft_ms_sum / 1000,
        sum(first[address] - ready[address] for address in ready),
        wall_s,
        sum(step.tokens_encoded for step in record.steps),
        sum(step.tokens_reused for step in record.steps),
        sum(step.tokens_read for step in record.steps),
    )


def middle(samples: list[Sample], workload: str, arm: str, quantity: str) -> float | None:
    """The median over repetitions; None if there is none."""
    values = [getattr(s, quantity) for s in samples if s.workload == workload and s.arm == arm]
    return float(median(values)) if values else None


def ratio(samples: list[Sample], workload: str, slow: str, fast: str, quantity: str) -> float | None:
    """How many times `slow` took what `fast` took: the median over repetitions that have both, run side by side."""
    by_repetition: dict[int, dict[str, float]] = {}
    for sample in samples:
        if sample.workload == workload:
            by_repetition.setdefault(sample.repetition, {})[sample.arm] = getattr(sample, quantity)
    ratios = [r[slow] / r[fast] for r in by_repetition.values() if slow in r and fast in r]
    return median(ratios) if ratios else None
