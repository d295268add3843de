"""Agents whose prompts do not fit the card: what a tier in host memory and the step graph's foresight are worth.

    .venv/bin/python benchmarks/gpu_cache.py [--only cyclic,concurrent] [--json]      about 8 minutes on one H100

KVFlow's two experiments on a random Llama of 8B shapes: ten agents of 8,192-token prompts in sequence, with pages for
four, and 64 workflows of ten agents at once, with pages for a third of their prompts. Each policy has an engine of its
own over the same model. `--tiny` tries all of it on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import torch
from gpu_model import NAMESPACE, Size, describe, open_engine
from gpu_workloads import Desk
from report import Clock, Report, Row, add_arguments, finish, new_report

from laban.actors.calls import Advice, Call, CallFailed, CallFinished, CallTokens, Prefetch
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.tiers_setup import make_tiers
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, make_spec
from laban.kvstore.uses import Use

AGENTS = 10
WARM_S = 30.0  # that encoding all prompts may take, before the workflows begin
AHEAD = 3  # agents to come that are ordered to be brought


@dataclass(frozen=True, slots=True)
class Variant:
    """`foresight` tells the engine when each prompt is needed next, and orders the nearest."""

    name: str
    eviction: str = "lru"
    host: bool = False
    foresight: bool = False
    link_bytes_per_s: float | None = None
    mixes: bool = False  # encodes the head of a message while its tail is loaded, where that pays


NONE = Variant("no_host_tier")
ON_DEMAND = Variant("on_demand", host=True)
OURS = Variant("cost", "cost", host=True, foresight=True, mixes=True)
MIXING = Variant("on_demand_mixing", host=True, mixes=True)


@dataclass(slots=True)
class Workflow:
    """Ten agents in a ring, and how far it is."""

    number: int
    prompts: list[EncodingSpec]
    turn: int = 0

    def next_uses(self, step_s: float, delay_s: float = 0.0) -> list[tuple[str, Use]]:
        """Of every prompt: the running agent's is at 0, or when the workflow will begin."""
        return [
            (
                self.prompts[(self.turn + ahead) % AGENTS].encoding_id,
                Use(ahead, delay_s + ahead * step_s, 1.0, True, self.number),
            )
            for ahead in range(AGENTS)
        ]


@dataclass(slots=True)
class Table:
    """Runs workflows on one engine; `step_s` is what a step is expected to take, learned as it goes."""

    engine: Engine
    desk: Desk
    variant: Variant
    size: Size
    step_s: float = 0.3
    began: dict[str, tuple[Workflow, float]] = field(default_factory=dict)
    firsts_ms: list[float] = field(default_factory=list)
    steps_ms: list[float] = field(default_factory=list)

    def begin(self, workflow: Workflow, num_new: int, num_out: int) -> None:
        prompt = workflow.prompts[workflow.turn % AGENTS]
        call = replace(self.desk.decode(self.desk.view([prompt]), num_new, num_out), rank=workflow.number)
        self.began[call.call_id] = workflow, time.perf_counter()
        if self.variant.foresight:
            self.foresee(workflow)
        self.engine.submit(call)

    def foresee(self, workflow: Workflow) -> None:
        uses = workflow.next_uses(self.step_s)
        nearest = [workflow.prompts[(workflow.turn + ahead) % AGENTS] for ahead in range(1, 1 + AHEAD)]
        orders = tuple(Prefetch(spec.encoding_id, (spec,), compute=False) for spec in nearest)
        self.engine.advise(Advice(tuple(uses), orders))

    def announce(self, workflows: Sequence[Workflow]) -> None:
        """When each prompt will be needed, before any is encoded."""
        for workflow in workflows if self.variant.foresight else ():
            self.engine.advise(Advice(tuple(workflow.next_uses(self.step_s, WARM_S))))

    def run(self, workflows: Sequence[Workflow], num_steps: int, num_new: int, num_out: int) -> float:
        """Each workflow takes `num_steps` steps, one after another; seconds that took all of them."""
        left = {workflow.number: num_steps for workflow in workflows}
        began = time.perf_counter()
        told: set[str] = set()
        for workflow in workflows:
            self.begin(workflow, num_new, num_out)
        while self.began:
            for event in self.engine.step().events:
                now = time.perf_counter()
                if isinstance(event, CallFailed):
                    raise RuntimeError(event.message)
                if isinstance(event, CallTokens) and event.call_id not in told:
                    told.add(event.call_id)
                    self.firsts_ms.append(1000 * (now - self.began[event.call_id][1]))
                if isinstance(event, CallFinished):
                    workflow, at = self.began.pop(event.call_id)
                    self.steps_ms.append(1000 * (now - at))
                    self.step_s += 0.2 * (now - at - self.step_s)
                    workflow.turn += 1
                    if self.variant.foresight:  # nobody reads what it said
                        said = event.encoding.encoding_id
                        self.engine.advise(Advice(((said, Use(0, 0.0)), (said, None))))
                    left[workflow.number] -= 1
                    if left[workflow.number]:
                        self.begin(workflow, num_new, num_out)
        return time.perf_counter() - began


@dataclass(slots=True)
class Bench:
    size: Size
    first: Engine
    seed: int
    clock: Clock
    report: Report

    def table(self, variant: Variant, device_tokens: int, host_tokens: int) -> Table:
        """An engine with room for so many tokens on the card, whatever the pool has, and below it."""
        runner, config = self.first.runner, self.config(variant)
        per_token = 2 * runner.k_pool[:, 0].numel() * runner.k_pool.itemsize
        tiers = make_tiers(runner, config, host_tokens * per_token if variant.host else None)
        tiers.mixes = variant.mixes
        engine = Engine(runner, self.first.tokenizer, config, namespace=NAMESPACE, tiers=tiers)
        spare = engine.info.pool_tokens - device_tokens
        if spare < 0:
            raise RuntimeError(f"the pool has {engine.info.pool_tokens} tokens, {device_tokens} are needed")
        engine.store.reserve("ballast", spare)
        return Table(engine, Desk(engine, random.Random(self.seed)), variant, self.size)

    def config(self, variant: Variant) -> EngineConfig:
        config = EngineConfig(
            drafting=False,
            eviction=variant.eviction,
            link_bytes_per_s=variant.link_bytes_per_s,
            max_running=self.first.scheduler.config.max_running,
        )
        return config.settled(self.first.runner.device.type, "bfloat16")

    def workflows(self, desk: Desk, count: int, num_fixed: int) -> list[Workflow]:
        made = []
        for number in range(count):
            prompts = [make_spec(NAMESPACE, desk._tokens(num_fixed), 0, EMPTY_VIEW, {}) for _ in range(AGENTS)]
            desk.specs.update({spec.encoding_id: spec for spec in prompts})
            made.append(Workflow(number, prompts))
        return made

    def warm(self, table: Table, workflows: Sequence[Workflow], at_once: int = 8) -> None:
        """Every prompt is encoded once, in the order of the steps to come."""
        prompts = [workflow.prompts[agent] for agent in range(AGENTS) for workflow in workflows]
        for begin in range(0, len(prompts), at_once):
            calls = [
                Call(f"warm-{prompt.encoding_id}", NAMESPACE, EMPTY_VIEW, 0, prompt.tokens, ())
                for prompt in prompts[begin : begin + at_once]
            ]
            table.desk.play(calls)

    def cyclic(self) -> list[Row]:
        """Ten agents in sequence. All that does not fit has to come back for every step."""
        size = self.size
        fixed, new, out = size.tokens(8192), size.tokens(32) if not size.tiny else 4, size.outputs(32)
        room, all_of_it = 4 * fixed + 64 * 16, (AGENTS + 1) * fixed + 64 * 16
        variants = [
            (replace(NONE, name="resident"), all_of_it),
            (NONE, room), (ON_DEMAND, room), (MIXING, room), (OURS, room),
            *((replace(v, name=f"{v.name}.{g}GBps", link_bytes_per_s=g * 1e9), room)
              for g in (5, 2) for v in (ON_DEMAND, MIXING, OURS)),
        ]  # fmt: skip
        found: dict[str, float] = {}
        for variant, tokens in variants:
            self.clock.say(f"cyclic: {variant.name}")
            table = self.table(variant, tokens, all_of_it)
            workflows = self.workflows(table.desk, 1, fixed)
            table.announce(workflows)
            self.warm(table, workflows, at_once=1)
            table.run(workflows, AGENTS, new, out)
            table.steps_ms, table.firsts_ms = [], []
            found[variant.name] = 1000 * table.run(workflows, AGENTS, new, out) / AGENTS
            rows = [
                Row(f"cyclic.{variant.name}.step", found[variant.name], "ms", better="lower"),
                Row(f"cyclic.{variant.name}.slowest_step", max(table.steps_ms), "ms", better="lower"),
                Row(f"cyclic.{variant.name}.ttft", median(table.firsts_ms), "ms", better="lower"),
                *_counted(f"cyclic.{variant.name}", table),
            ]
            self._end(table, rows)
        none, resident = found["no_host_tier"], found["resident"]
        at_2 = min(none, found["on_demand.2GBps"])
        return [
            Row("cyclic.cost.over_resident", found["cost"] / resident, "ratio", 1.05, "lower"),
            Row("cyclic.cost.speedup_over_no_host_tier", none / found["cost"], "ratio", 1.8),
            Row("cyclic.cost.5GBps.speedup_over_no_host_tier", none / found["cost.5GBps"], "ratio", 1.8),
            Row(
                "cyclic.cost.5GBps.speedup_over_on_demand",
                found["on_demand.5GBps"] / found["cost.5GBps"], "ratio", 1.8,
            ),
            Row("cyclic.cost.2GBps.speedup_over_better", at_2 / found["cost.2GBps"], "ratio", 1.3),
        ]  # fmt: skip

    def concurrent(self) -> list[Row]:
        """64 workflows at once, each of ten agents in a ring."""
        size = self.size
        count = 2 if size.tiny else 64
        fixed, new, out = size.tokens(1024), size.tokens(256), size.outputs(256)
        prompts = count * AGENTS * fixed
        room = prompts // 3 + count * (new + out + 2 * 16)
        host = prompts * 3 // 4
        found: dict[str, float] = {}
        for variant in (NONE, ON_DEMAND, OURS):
            self.clock.say(f"concurrent: {variant.name}")
            table = self.table(variant, room, host)
            workflows = self.workflows(table.desk, count, fixed)
            table.step_s = 5.0
            table.announce(workflows)
            self.warm(table, workflows, at_once=1 if size.tiny else 8)
            seconds = table.run(workflows, 2 if size.tiny else 4, new, out)
            found[variant.name] = seconds
            rows = [
                Row(f"concurrent.{variant.name}.seconds", seconds, "s", better="lower"),
                Row(f"concurrent.{variant.name}.step", fmean(table.steps_ms), "ms", better="lower"),
                Row(f"concurrent.{variant.name}.ttft", median(table.firsts_ms), "ms", better="lower"),
                *_counted(f"concurrent.{variant.name}", table),
            ]
            self._end(table, rows)
        ours = found["cost"]
        return [
            Row("concurrent.cost.speedup_over_no_host_tier", found["no_host_tier"] / ours, "ratio", 1.25),
            Row("concurrent.cost.speedup_over_on_demand", found["on_demand"] / ours, "ratio", 1.0),
        ]

    def _end(self, table: Table, rows: list[Row]) -> None:
        while table.engine.has_work():
            table.engine.step()
        table.engine.close()
        if table.engine.tiers.pool is not None:
            table.engine.tiers.pool.close()
        gc.collect()  # here, not while the next is measured: giving back host memory takes seconds
        self.report.rows += rows
        self.report.save_partial()


def _counted(name: str, table: Table) -> list[Row]:
    totals, rates = table.engine.tiers.counters.totals(), table.engine.tiers.rates.known
    return [
        Row(f"{name}.loaded", float(totals.tokens_loaded_host), "tokens"),
        Row(f"{name}.encoded_again", float(totals.tokens_encoded_again), "tokens", better="lower"),
        Row(f"{name}.prefetches_useful", float(totals.prefetches_useful), ""),
        Row(f"{name}.prefetches_late", float(totals.prefetches_late), "", better="lower"),
        Row(f"{name}.prefetches_wasted", float(totals.prefetches_wasted), "", better="lower"),
        Row(f"{name}.link", rates.host_bytes_per_s / 1e9, "GB/s"),
    ]


SECTIONS = {"cyclic": Bench.cyclic, "concurrent": Bench.concurrent}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Agents whose prompts do not fit one GPU.")
    add_arguments(parser)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, by comma: {','.join(SECTIONS)}")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short prompts, on a CPU if need be")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args(argv)
    names = args.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    clock = Clock()
    report = new_report("gpu-cache", args, part=args.tiny or set(names) != set(SECTIONS))
    report.machine = f"{describe(device)}, {report.machine}"
    if args.commit:
        report.commit = args.commit
    clock.say("making the model and the engine, capturing CUDA graphs")
    engine, _ = open_engine(Size(args.tiny), device, args.seed)
    bench = Bench(Size(args.tiny), engine, args.seed, clock, report)
    for name in names:
        report.rows += SECTIONS[name](bench)
        report.save_partial()
    finish(report, args, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
