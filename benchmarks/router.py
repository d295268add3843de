"""What a routing decision costs, and what a shard of the directory holds and takes: the objects that serve, no models.

    .venv/bin/python benchmarks/router.py [--quick] [--json]      about 4 minutes

A fleet under load (router_world.py) with a directory of a million encodings, of which the view holds those that live
runs name. A decision is `Router.choose` for a call whose needs are known; what is done once a call besides is told
apart: `view` reads the call, `send` counts it for the chosen worker. Each is timed by this thread's CPU clock, since
other processes may have the cores; between two of them calls begin and end and the directory tells of it. `by_key`
is a policy of one's own, which is asked for every worker; `unknown` are calls whose encodings nobody ever had. The
garbage collector runs as it likes, but what the directory holds is not its concern: in service that is another process.
"""

from __future__ import annotations

import argparse
import gc
import pickle
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from statistics import quantiles

from report import Clock, Row, add_arguments, finish, new_report
from router_world import BATCH_CHANGES, NAMESPACE, READY, TIERS, Size, World

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.policies import POLICIES, CostPolicy
from laban.cluster.routing.policy import WorkerView
from laban.kvstore.directory import DirectoryShard
from laban.kvstore.directory_messages import Answer, Batch, Watch
from laban.kvstore.placements import PlacementState, pack

P50_US, P99_US = 100.0, 1000.0
BYTES_AN_ENCODING = 600.0
CHANGES_A_SECOND = 50_000.0
WATCHED_SHARE = 10  # one encoding in so many is watched by somebody
NEWS_BATCHES = 16  # between two polls of a subscriber


class ByKey:
    """The same order, of a policy that is asked for each worker's key."""

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return (worker.cost_ms, worker.left_tokens, worker.num_calls)


def decisions_us(world: World, number: int, *, unknown: bool = False) -> dict[str, list[float]]:
    """Microseconds of each part of so many decisions, in the order in which they were made; `unknown`: of calls whose
    encodings nobody ever had."""
    times: dict[str, list[float]] = {"view": [], "decision": [], "send": []}
    clock = time.thread_time_ns
    for at in range(number):
        ordered = world.calls[at % len(world.calls)]
        begin = clock()
        view = world.unheard_of(ordered.view()) if unknown else ordered.view()
        viewed = clock()
        choice = world.choose(view)
        chosen = clock()
        sent = world.send(view, choice)
        end = clock()
        times["view"].append((viewed - begin) / 1000)
        times["decision"].append((chosen - viewed) / 1000)
        times["send"].append((end - chosen) / 1000)
        world.sent(sent)
    return times


def spread_rows(
    name: str, times: Sequence[float], targets: tuple[float | None, float | None] = (None, None)
) -> list[Row]:
    cuts = quantiles(times, n=100)
    return [
        Row(f"{name}.p50", cuts[49], "us", targets[0], "lower"),
        Row(f"{name}.p99", cuts[98], "us", targets[1], "lower"),
        Row(f"{name}.min", min(times), "us", better="lower"),
    ]


def decision_rows(args: argparse.Namespace, clock: Clock) -> list[Row]:
    clock.say(f"building {args.workers} workers and {args.encodings:,} encodings")
    world = World(Size(args.workers, args.encodings, args.runs, args.seed))
    world.load()
    gc.collect()
    gc.freeze()
    rows = [
        Row("directory.encodings", float(world.shard.status().num_encodings), ""),
        Row("view.encodings", float(world.view.num_watched), ""),
        Row("call.needs", sum(len(each.view().needs) for each in world.calls) / len(world.calls), ""),
    ]
    clock.say(f"{args.decisions:,} decisions by cost")
    times = decisions_us(world, args.decisions)
    rows += spread_rows(f"cost.{args.workers}", times["decision"], (args.p50_us, args.p99_us))
    rows += spread_rows("view", times["view"]) + spread_rows("send", times["send"])
    few = max(args.decisions // 10, 100)
    for name in [each for each in POLICIES if each != "cost"]:
        clock.say(f"{few:,} decisions by {name}")
        world.use(POLICIES[name]())
        rows += spread_rows(f"{name}.{args.workers}", decisions_us(world, few)["decision"])
    clock.say(f"{few:,} decisions by a policy of one's own")
    world.use(ByKey())
    rows += spread_rows(f"by_key.{args.workers}", decisions_us(world, few)["decision"])
    clock.say(f"{few:,} decisions by cost of which nothing is known")
    world.use(CostPolicy())
    rows += spread_rows(f"unknown.{args.workers}", decisions_us(world, few, unknown=True)["decision"])
    gc.unfreeze()
    return rows


def growth_rows(args: argparse.Namespace, clock: Clock) -> list[Row]:
    """By the size of the fleet, each with as many runs a worker."""
    rows = []
    medians: list[float] = []
    for workers in args.fleets:
        world = World(Size(workers, 0, max(args.runs * workers // args.workers, 32), args.seed))
        world.load()
        gc.collect()
        gc.freeze()
        clock.say(f"decisions over {workers} workers")
        made = spread_rows(f"growth.{workers}", decisions_us(world, max(args.decisions // 4, 100))["decision"])
        gc.unfreeze()
        medians.append(made[0].value)
        rows += made
    fleet = args.fleets[-1] / args.fleets[0]
    rows.append(
        Row(f"growth.p50_of_{args.fleets[-1]}_to_{args.fleets[0]}", medians[-1] / medians[0], "x", better="lower")
    )
    rows.append(Row("growth.workers", fleet, "x"))
    return rows


def batches(num_encodings: int, num_workers: int, rng: random.Random) -> Iterator[bytes]:
    """Of a fleet that begins: each encoding lies on one worker's device, every second on its host as well. As they
    arrive at the shard: pickled."""
    numbers = [0] * num_workers
    for begin in range(0, num_encodings, BATCH_CHANGES):
        worker = rng.randrange(num_workers)
        numbers[worker] += 1
        changes = []
        for at in range(begin, min(begin + BATCH_CHANGES, num_encodings)):
            encoding_id = f"{rng.getrandbits(96):024x}{at:08x}"
            tokens = rng.randint(32, 512)
            for tier in TIERS[:1] if at % 2 else (TIERS[0], TIERS[-2]):
                changes.append((encoding_id, pack(tier, READY, tokens), NAMESPACE))
        yield pickle.dumps(Batch(f"w{worker}", _epoch(worker), numbers[worker], "changes", tuple(changes)))


def directory_rows(args: argparse.Namespace, clock: Clock) -> list[Row]:
    clock.say(f"measuring a shard of {args.shard_encodings:,} encodings")
    rng, shard = random.Random(args.seed), DirectoryShard()
    watched: list[str] = []
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for data in batches(args.shard_encodings, 64, rng):
        batch = pickle.loads(data)
        assert shard.publish(batch, 0.0) is Answer.TAKEN
        watched += [encoding_id for encoding_id, _, _ in batch.changes[::WATCHED_SHARE]]
    del data, batch
    watch = Watch("router", 1, tuple(dict.fromkeys(watched)), anew=True)
    watched.clear()
    assert shard.watch(watch, 0.0)
    del watch  # the shard keeps what it needs of it
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    clock.say("publishing changes")
    return [
        Row("directory.bytes_an_encoding", used / args.shard_encodings, "bytes", BYTES_AN_ENCODING, "lower"),
        Row("directory.changes", changes_a_second(args, rng), "/s", args.changes_a_second),
    ]


def changes_a_second(args: argparse.Namespace, rng: random.Random) -> float:
    """Through a full shard with a subscriber: unpickled, taken, and the news of them told and pickled. CPU time; the
    median of five parts."""
    shard, ids, numbers = DirectoryShard(), [], {}
    for data in batches(args.shard_encodings, 64, rng):
        batch = pickle.loads(data)
        shard.publish(batch, 0.0)
        ids += [each[0] for each in batch.changes]
        numbers[batch.worker_id] = batch.number
    shard.watch(Watch("router", 1, tuple(dict.fromkeys(ids[::WATCHED_SHARE])), anew=True), 0.0)
    taken = 0
    while (news := shard.take_news("router", taken, 0.0)) is not None and news:
        taken = news.number
    parts = []
    for _ in range(5):
        made = []
        for _ in range(args.changes // 5 // BATCH_CHANGES + 1):
            worker = rng.randrange(64)
            numbers[f"w{worker}"] = numbers.get(f"w{worker}", 0) + 1
            changes = tuple(
                (rng.choice(ids), pack(rng.choice(TIERS), rng.choice(tuple(PlacementState)), 64), NAMESPACE)
                for _ in range(BATCH_CHANGES)
            )
            batch = Batch(f"w{worker}", _epoch(worker), numbers[f"w{worker}"], "changes", changes)
            made.append(pickle.dumps(batch))
        begin = time.process_time()
        for at, data in enumerate(made):
            assert shard.publish(pickle.loads(data), 0.0) is Answer.TAKEN
            if at % NEWS_BATCHES == 0:
                news = shard.take_news("router", taken, 0.0)
                assert news is not None
                taken = news.number
                pickle.dumps(news)
        parts.append(len(made) * BATCH_CHANGES / (time.process_time() - begin))
    return sorted(parts)[2]


def _epoch(worker: int) -> str:
    return f"{worker + 1:016x}"


SECTIONS: dict[str, Callable[[argparse.Namespace, Clock], list[Row]]] = {
    "directory": directory_rows,
    "decision": decision_rows,
    "growth": growth_rows,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a target was missed, and the run was not a quick one."""
    parser = argparse.ArgumentParser(
        description="What routing a call costs by the size of the fleet, and what a shard of the directory holds.",
        epilog="Rows named NAME.256 are over 256 workers. A quick run has no targets but those given by --p50-us and "
        "the like. Exits with 1 if a target is missed.",
    )
    add_arguments(parser)
    parser.add_argument("--only", help=f"one of {', '.join(SECTIONS)}", choices=SECTIONS)
    parser.add_argument("--workers", type=int, default=256, help="of the fleet that decisions are made over")
    parser.add_argument("--encodings", type=int, default=1_000_000, help="in the directory")
    parser.add_argument("--runs", type=int, default=2000, help="live ones, whose encodings are watched")
    parser.add_argument("--decisions", type=int, default=10_000, help="of policy cost; of others a tenth")
    parser.add_argument(
        "--fleets", type=int, nargs="+", default=[16, 64, 256, 1024], help="sizes to show the growth by"
    )
    parser.add_argument("--shard-encodings", type=int, default=250_000, help="in the shard that is measured")
    parser.add_argument("--changes", type=int, default=250_000, help="published to it")
    parser.add_argument("--p50-us", type=float, help=f"target of a decision (default {P50_US:.0f})")
    parser.add_argument("--p99-us", type=float, help=f"the same (default {P99_US:.0f})")
    parser.add_argument("--changes-a-second", type=float, help=f"target (default {CHANGES_A_SECOND:,.0f})")
    args = parser.parse_args(arguments)
    if args.quick:
        args.workers, args.encodings, args.runs, args.decisions = 16, 2000, 20, 100
        args.fleets, args.shard_encodings, args.changes = [4, 8], 2000, 2000
    else:
        args.p50_us, args.p99_us = args.p50_us or P50_US, args.p99_us or P99_US
        args.changes_a_second = args.changes_a_second or CHANGES_A_SECOND
    clock = Clock()
    report = new_report("router", args, part=args.only is not None)
    for name in [args.only] if args.only else SECTIONS:
        report.rows += SECTIONS[name](args, clock)
        report.save_partial()
    finish(report, args, clock)
    return 1 if any(row.met is False for row in report.rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
