"""The engine cut over the GPUs of one host: times of a first token and between tokens, and what the all-reduces take.

    .venv/bin/python benchmarks/gpu_shards.py [--shards 2] [--quick] [--json]      about 1 minute on two H100 or H200

The model, workloads and targets' baseline are those of `gpu.py`. `--tiny` tries it on CPUs, over gloo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from gpu_model import NAMESPACE, TINY_POOL_TOKENS, Size, describe, random_model, word_tokenizer
from gpu_timing import replayed_us
from gpu_workloads import Desk, measure_cached, measure_itl
from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.load import make_engine
from laban.actors.engine.lockstep import Lockstep, follow
from laban.actors.engine.shard_group import ShardGroup, open_rendezvous
from laban.actors.shards import ShardPlace

START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Plan:
    """What every shard is told."""

    size: Size
    reps: int
    seed: int


class SharedDesk(Desk):
    """Its messages are never evicted: that would have to happen on every shard at once."""

    def clear(self) -> None:
        self.specs.clear()


class Shards(Lockstep):
    """A Lockstep that is asked for what an engine has besides."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def run_shard(place: ShardPlace, plan: Plan, sending: Connection) -> None:
    """One process. Rank 0 sends its rows, the others nothing."""
    on_card = not plan.size.tiny
    device = torch.device("cuda", place.rank) if on_card else torch.device("cpu")
    torch.manual_seed(plan.seed)  # the same weights on every shard, of which each keeps its slice
    group = ShardGroup.join(place, device)
    rows = measure_all_reduce(group, plan)
    model = random_model(plan.size, device)
    tokenizer = word_tokenizer(model.config.vocab_size)
    config = EngineConfig(pool_tokens=None if on_card else TINY_POOL_TOKENS, drafting=False).settled(
        device.type, "bfloat16"
    )
    engine = make_engine(model, tokenizer, config, device, group, namespace=NAMESPACE)
    if group.rank:
        follow(engine, group)
    else:
        lockstep = Shards(engine, group)
        desk = SharedDesk(lockstep, random.Random(plan.seed))  # type: ignore[arg-type]
        for measure in (measure_cached, measure_itl):
            rows += [Row(r.name, r.value, r.unit, better=r.better) for r in measure(desk, plan.size, plan.reps)]
        lockstep.close()
        itl_ms = {row.name: row.value for row in rows}
        for batch in (1, 32):
            share = itl_ms[f"all_reduce_{batch}"] / (1000 * itl_ms[f"itl.shared_{batch}"])
            rows.append(Row(f"all_reduce_{batch}.share_of_itl", 100 * share, "%", better="lower"))
        sending.send(rows)
    engine.close()
    engine.runner.close()
    group.close()


def measure_all_reduce(group: ShardGroup, plan: Plan) -> list[Row]:
    """Two a layer, alone: their sum over the layers of one iteration."""
    layers, hidden_size = int(plan.size.model["num_hidden_layers"]), int(plan.size.model["hidden_size"])  # type: ignore[call-overload]
    rows = []
    for batch in (1, 32):
        x = torch.zeros(
            batch, hidden_size, device=group.device, dtype=torch.float32 if plan.size.tiny else torch.bfloat16
        )

        def launches(x: torch.Tensor = x) -> None:
            for _ in range(2 * layers):
                group.all_reduce(x)

        rows.append(Row(f"all_reduce_{batch}", replayed_us(launches, group.device, plan.reps), "us", better="lower"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine's numbers on several GPUs of one host.")
    add_arguments(parser)
    parser.add_argument("--shards", type=int, default=2, help="GPUs that the model is cut over")
    parser.add_argument("--tiny", action="store_true", help="a small model, on CPUs")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args()
    clock, report = Clock(), new_report(f"gpu_shards_{args.shards}", args, part=args.tiny)
    report.machine = f"{args.shards} x {describe(torch.device('cpu' if args.tiny else 'cuda:0'))}, {report.machine}"
    report.commit = args.commit or report.commit
    plan = Plan(Size(args.tiny), 2 if args.quick else 5, args.seed)
    server, address = open_rendezvous("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    places = [ShardPlace(rank, args.shards, address) for rank in range(args.shards)]
    processes = [context.Process(target=run_shard, args=(place, plan, sending)) for place in places]
    clock.say(f"starting {args.shards} shards")
    try:
        for process in processes:
            process.start()
        sending.close()
        if not receiving.poll(START_TIMEOUT_S):
            raise SystemExit(f"the shards did not answer within {START_TIMEOUT_S:.0f} s")
        report.rows += receiving.recv()
    finally:
        for process in processes:
            process.join(20)
            process.kill()
        del server
    finish(report, args, clock)


if __name__ == "__main__":
    main()
