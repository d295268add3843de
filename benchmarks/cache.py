"""Agents whose prompts do not fit the pool, on a CPU: what a host tier, foresight and routing by cost are worth.

    .venv/bin/python benchmarks/cache.py [--only ring,random,nodes] [--quick] [--json]   (make bench-cache)

ring    ten agents in sequence on the default model, with pages for four of their prompts. All variants take turns,
        a round each, so that they suffer alike from what else the machine does. Copies within one memory cost next to
        nothing, so two variants are repeated with a link on which a prompt takes about as long as a step.
random  the same agents in a random order that nobody announces: no policy may do worse than the oldest goes first
nodes   workflows on two workers on two Ray nodes (cache_nodes.py)

`gpu_cache.py` is the same at full size on a GPU. `--tiny` takes a random model, for a test of this file.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from cache_nodes import measure_nodes
from gpu_cache import AGENTS, NONE, ON_DEMAND, OURS, Bench, Table, Variant, Workflow
from gpu_model import NAMESPACE, Size, random_model, word_tokenizer
from gpu_workloads import Desk
from report import Clock, Report, Row, add_arguments, finish, new_report

from laban.actors.calls import CacheCounters
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.load import load_engine
from laban.actors.engine.runner import Runner
from laban.actors.engine.tiers_setup import make_tiers
from laban.actors.models import prepare_default_model

RESIDENT = replace(NONE, name="resident")
ROOM = 4  # agents whose prompts the pool has pages for
PAGE = 16
RANDOM_OUT = 2  # tokens: decoding says nothing here
POLICIES = ("lru", "steps", "cost")


@dataclass(frozen=True, slots=True)
class Sizes:
    """In tokens, but for the rounds of a ring and the steps in random order."""

    fixed: int = 256
    new: int = 8
    out: int = 8
    rounds: int = 2
    link_bytes_per_s: float = 40e6  # 256 tokens of the default model are 12 MB
    random_fixed: int = 32
    random_steps: int = 300


QUICK = Sizes(fixed=96, new=4, out=4, rounds=1, random_fixed=32, random_steps=150)


class CpuBench(Bench):
    """Every variant has a pool of its own over the weights of `first`."""

    def table(self, variant: Variant, device_tokens: int, host_tokens: int) -> Table:
        first = self.first
        config = EngineConfig(
            drafting=False,
            pool_tokens=device_tokens,
            eviction=variant.eviction,
            link_bytes_per_s=variant.link_bytes_per_s,
        ).settled("cpu", "float32")
        assert isinstance(first.runner, Runner)
        runner = Runner(first.runner.model, device_tokens // PAGE * PAGE)
        per_token = 2 * runner.k_pool[:, 0].numel() * runner.k_pool.itemsize
        tiers = make_tiers(runner, config, host_tokens * per_token if variant.host else None)
        tiers.mixes = variant.mixes
        engine = Engine(
            runner,
            first.tokenizer,
            config,
            namespace=NAMESPACE,
            max_context=first.info.max_context,
            tiers=tiers,
        )
        return Table(engine, Desk(engine, random.Random(self.seed)), variant, self.size)

    def ring(self, sizes: Sizes) -> None:
        """Rows of each variant, and what ours is worth."""
        slow = f"{sizes.link_bytes_per_s / 1e6:.0f}MBps"
        variants = [RESIDENT, NONE, ON_DEMAND, OURS]
        variants += [
            replace(v, name=f"{v.name}.{slow}", link_bytes_per_s=sizes.link_bytes_per_s) for v in (ON_DEMAND, OURS)
        ]
        tables: list[tuple[Table, list[Workflow], CacheCounters]] = []
        a_prompt, spare = sizes.fixed, sizes.new + sizes.out + 2 * PAGE
        for variant in variants:
            self.clock.say(f"ring: encoding the prompts for {variant.name}")
            agents = AGENTS + 1 if variant is RESIDENT else ROOM
            table = self.table(variant, agents * a_prompt + spare, (AGENTS + 1) * a_prompt)
            workflows = self.workflows(table.desk, 1, sizes.fixed)
            table.announce(workflows)
            self.warm(table, workflows, at_once=1)
            table.run(workflows, AGENTS, sizes.new, sizes.out)  # how fast all of it is becomes known
            table.steps_ms, table.firsts_ms = [], []
            tables.append((table, workflows, _counted(table)))
        for number in range(sizes.rounds):
            self.clock.say(f"ring: round {number + 1} of {sizes.rounds}")
            for table, workflows, _ in tables:
                table.run(workflows, AGENTS, sizes.new, sizes.out)
        steps: dict[str, float] = {}
        for table, _, before in tables:
            name, after = table.variant.name, _counted(table)
            again = after.tokens_encoded_again - before.tokens_encoded_again
            loaded = after.tokens_loaded_host - before.tokens_loaded_host
            steps[name] = median(table.steps_ms)
            rows = [
                Row(f"ring.{name}.step", steps[name], "ms", better="lower"),
                Row(f"ring.{name}.ttft", median(table.firsts_ms), "ms", better="lower"),
                Row(f"ring.{name}.encoded_again", float(again), "tokens", better="lower"),
                Row(f"ring.{name}.loaded", float(loaded), "tokens"),
            ]
            self._end(table, rows)
        ours, none, slow_ours = steps["cost"], steps["no_host_tier"], steps[f"cost.{slow}"]
        self.report.rows += [
            Row("ring.cost.over_resident", ours / steps["resident"], "ratio", better="lower"),
            Row("ring.cost.speedup_over_no_host_tier", none / ours, "ratio", 1.5),
            Row("ring.cost.speedup_over_on_demand", steps["on_demand"] / ours, "ratio"),
            Row(f"ring.cost.{slow}.speedup_over_no_host_tier", none / slow_ours, "ratio", 1.5),
            Row(f"ring.cost.{slow}.speedup_over_on_demand", steps[f"on_demand.{slow}"] / slow_ours, "ratio", 1.0),
        ]
        self.report.save_partial()

    def random_order(self, sizes: Sizes) -> None:
        """Without advice, and without a tier below: tokens encoded again under each policy, on the same steps."""
        found = {}
        for policy in POLICIES:
            self.clock.say(f"random order: {policy}")
            spare = sizes.new + RANDOM_OUT + 2 * PAGE
            table = self.table(Variant(policy, policy), ROOM * sizes.random_fixed + spare, 0)
            workflow = self.workflows(table.desk, 1, sizes.random_fixed)[0]
            self.warm(table, [workflow], at_once=1)
            before, order = _counted(table).tokens_encoded_again, random.Random(self.seed)
            for _ in range(sizes.random_steps):
                workflow.turn = order.randrange(AGENTS)
                table.run([workflow], 1, sizes.new, RANDOM_OUT)
            found[policy] = float(_counted(table).tokens_encoded_again - before)
            self._end(table, [])
        self.report.rows += [
            *(Row(f"random.{policy}.encoded_again", n, "tokens", better="lower") for policy, n in found.items()),
            *(Row(f"random.{policy}.over_lru", found[policy] / found["lru"], "ratio", 1.02, "lower")
              for policy in POLICIES[1:]),
        ]  # fmt: skip
        self.report.save_partial()


def _counted(table: Table) -> CacheCounters:
    return table.engine.tiers.counters.totals()


def open_first(tiny: bool, seed: int, clock: Clock) -> Engine:
    """The engine whose weights all share."""
    if not tiny:
        folder = prepare_default_model(lambda doing, share: clock.say(doing))
        config = EngineConfig(pool_tokens=PAGE, host_bytes=0, num_threads=1, device="cpu")
        return load_engine(folder, config, "bench")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = random_model(Size(True), torch.device("cpu"))
    config = EngineConfig(pool_tokens=PAGE).settled("cpu", "float32")
    return Engine(Runner(model, PAGE), word_tokenizer(model.config.vocab_size), config, namespace=NAMESPACE)


SECTIONS = ("ring", "random", "nodes")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Agents whose prompts do not fit the pool, on a CPU.")
    add_arguments(parser)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, by comma: {','.join(SECTIONS)}")
    parser.add_argument("--tiny", action="store_true", help="ring and random on a tiny random model")
    args = parser.parse_args(argv)
    names = args.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    clock = Clock()
    report: Report = new_report("cache", args, part=args.tiny or set(names) != set(SECTIONS))
    sizes = QUICK if args.quick or args.tiny else Sizes()
    if {"ring", "random"} & set(names):
        bench = CpuBench(Size(args.tiny), open_first(args.tiny, args.seed, clock), args.seed, clock, report)
        if "ring" in names:
            bench.ring(sizes)
        if "random" in names:
            bench.random_order(sizes)
        del bench
    if "nodes" in names:
        report.rows += measure_nodes(clock, quick=args.quick)
    finish(report, args, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
