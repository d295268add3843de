"""What `simulate.py` simulates when nothing else is asked for, and the targets."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from report import Row
from sim_bench import FARTHEST, Bench
from sim_costs import GB, Costs
from sim_directory import Post
from sim_workloads import WORKLOADS, fleet
from sim_world import Outcome, Setup

from laban.cluster.routing.policies import POLICIES
from laban.kvstore.eviction import SIMULATED

EVICTIONS = ("lru", *(name for name in SIMULATED if name != "lru"))
ROUTINGS = tuple(POLICIES)
DECLARED = ("cyclic", "concurrent", "graphs")
"""Workloads all of whose steps are known from the beginning."""
PARTLY = (*DECLARED, "arrivals", "mixed")
"""Workloads of which some is known beforehand, and may be wrong."""
ROOM_GB = {"cyclic": (4.6, 12), "concurrent": (30, 60), "graphs": (20, 40)}
"""Of the device, and of host memory where there is any: room for 4 of 10 agents, a third of the prompts, about half."""
OTHERS_GB = (40, 60)
NEAR_BELADY = 1.05
NEAR_LRU = 1.02


@dataclass(frozen=True, slots=True)
class Sizes:
    scale: float = 1.0  # of the workloads on one worker whose steps are declared
    scale_others: float = 0.5
    fleet_workers: int = 16
    live_each: int = 100  # flows, for each worker
    rounds: float = 1.0  # flows in all, for each that lives
    fleets: tuple[int, ...] = (16, 64, 256, 1024)  # the more of them live flows, to `max_live`
    max_live: int = 100_000
    until_s: float = 40.0


QUICK = Sizes(0.1, 0.05, fleet_workers=4, live_each=20, fleets=(2, 8), until_s=40.0)


def eviction(bench: Bench, costs: Costs, sizes: Sizes, *, wrong: float, seed: int) -> None:
    """Every policy on every workload with the same calls at the same times: what its mistakes cost, and no more."""
    for name, make in WORKLOADS.items():
        workload = make(random.Random(seed), sizes.scale if name in DECLARED else sizes.scale_others)
        for tiers in ("device", "host"):
            device_gb, host_gb = ROOM_GB.get(name, OTHERS_GB)
            here = replace(costs, device_bytes=device_gb * GB, host_bytes=host_gb * GB * (tiers == "host"))
            found: dict[str, Outcome] = {}
            at = f"eviction.{name}.{tiers}"
            for policy in EVICTIONS:
                outcome = bench.simulate(workload, here, Setup(policy, fixed=True, seed=seed))
                found[policy] = outcome
                bench.report.rows += [
                    Row(f"{at}.{policy}.stall", outcome.stall_s, "s", better="lower"),
                    Row(f"{at}.{policy}.hit_rate", 100 * outcome.hit_rate, "%"),
                ]
            near = NEAR_BELADY if name in DECLARED else None
            bench.report.rows += [
                Row(f"{at}.cost.over_belady", _over(found["cost"], found[FARTHEST]), "ratio", near, "lower"),
                Row(f"{at}.cost.over_lru", _over(found["cost"], found["lru"]), "ratio", NEAR_LRU, "lower"),
                Row(f"{at}.steps.over_lru", _over(found["steps"], found["lru"]), "ratio", better="lower"),
            ]
            if name in PARTLY:
                mistaken = bench.simulate(workload, here, Setup("cost", fixed=True, wrong=wrong, seed=seed))
                over = _over(mistaken, found["lru"])
                bench.report.rows.append(Row(f"{at}.cost.wrong_{wrong:g}.over_lru", over, "ratio", 1.0, "lower"))
            bench.report.save_partial()


def _over(one: Outcome, other: Outcome) -> float:
    return one.stall_s / max(1e-9, other.stall_s)


def policies(bench: Bench, costs: Costs, sizes: Sizes, *, seed: int) -> None:
    """A fleet in which everything takes its time: every eviction under routing `cost`, every routing under `cost`."""
    live = sizes.live_each * sizes.fleet_workers
    workload = fleet(random.Random(seed), round(live * sizes.rounds), live)
    here = replace(costs, device_bytes=6 * GB, host_bytes=12 * GB)
    setup = Setup(routing="cost", num_workers=sizes.fleet_workers, sample=16, seed=seed)
    for policy in EVICTIONS:
        bench.add(f"eviction.fleet.{policy}", bench.simulate(workload, here, replace(setup, eviction=policy)))
        bench.report.save_partial()
    for policy in ROUTINGS:
        bench.add(f"routing.fleet.{policy}", bench.simulate(workload, here, replace(setup, routing=policy)))
        bench.report.save_partial()


def faults(bench: Bench, costs: Costs, sizes: Sizes, *, seed: int) -> None:
    """The same fleet while workers die and join and messages of the directory are lost, late and repeated."""
    live = sizes.live_each * sizes.fleet_workers
    workload = fleet(random.Random(seed), round(live * sizes.rounds), live)
    here = replace(costs, device_bytes=6 * GB, host_bytes=12 * GB)
    calm = Setup(routing="cost", num_workers=sizes.fleet_workers, sample=16, seed=seed)
    post = Post(lost=0.05, late=0.05, repeated=0.05)
    deaths, joins = disturbances(sizes.fleet_workers, every_s=5.0, until_s=sizes.until_s, num_joining=2, seed=seed)
    for name, setup in (
        ("none", calm),
        ("messages", replace(calm, post=post)),
        ("all", replace(calm, post=post, deaths=deaths, joins=joins)),
    ):
        outcome = bench.simulate(workload, here, setup)
        bench.add(f"faults.{name}", outcome)
        counts, at = outcome.counts, f"faults.{name}"
        bench.report.rows += [
            Row(f"{at}.flows_ended", 100 * outcome.flows / len(workload.flows), "%", 100.0),
            Row(f"{at}.calls_lost", counts.get("calls_lost", 0.0), "calls", better="lower"),
            Row(f"{at}.mispredicted", mispredicted(outcome), "%", better="lower"),
            Row(f"{at}.gaps", counts["directory_gaps"], "", better="lower"),
        ]
        bench.report.save_partial()


def mispredicted(outcome: Outcome) -> float:
    """Percent of the tokens that routing expected to be found, and were not."""
    return 100 * outcome.counts["tokens_missed"] / max(1.0, outcome.counts["tokens_predicted"])


def disturbances(
    num_workers: int, *, every_s: float, until_s: float, num_joining: int, seed: int
) -> tuple[tuple[tuple[float, int], ...], tuple[tuple[float, int], ...]]:
    """When which worker dies, any of them every so often; and when which ones join, evenly spread."""
    rng = random.Random(seed)
    times = [every_s * number for number in range(1, int(until_s / every_s) + 1)] if every_s else []
    deaths = tuple((time_s, rng.randrange(num_workers)) for time_s in times)
    joins = tuple((until_s * (each + 1) / (num_joining + 1), num_workers + each) for each in range(num_joining))
    return deaths, joins


BUSY = {
    "router": "router_cpu_s",
    "directory view": "view_cpu_s",
    "directory shard": "shards_cpu_s",
    "devices": "device_busy_s",
    "host links": "link_busy_s",
    "peer links": "peer_busy_s",
}
"""What may be too busy, and in which count its seconds are. The first three are one each, and their seconds are this
process's; the others are one a worker, in virtual time."""
OF_WHOLE = ("router", "directory view", "directory shard")


def scale(bench: Bench, costs: Costs, sizes: Sizes, *, seed: int) -> None:
    """Ever more workers and flows: how busy is each thing, and which of them has no time left first."""
    here = replace(costs, device_bytes=20 * GB, host_bytes=60 * GB)
    for num_workers in sizes.fleets:
        live = min(sizes.live_each * num_workers, sizes.max_live)
        workload = fleet(random.Random(seed), 3 * live, live)
        setup = Setup(routing="cost", num_workers=num_workers, sample=16, until_s=sizes.until_s, seed=seed)
        began = time.thread_time()
        outcome = bench.simulate(workload, here, setup)
        took_s = time.thread_time() - began
        at = f"scale.{num_workers}"
        decisions_us = sorted(1e6 * each for each in outcome.decisions_s)
        bench.report.rows += [
            Row(f"{at}.live", live, "flows"),
            Row(f"{at}.simulating", took_s, "s", better="lower"),
            Row(f"{at}.calls", outcome.calls / outcome.makespan_s, "calls/s"),
            Row(f"{at}.ttft_p50", 1000 * outcome.ttft_s(0.5), "ms", better="lower"),
            Row(f"{at}.ttft_p99", 1000 * outcome.ttft_s(0.99), "ms", better="lower"),
            Row(f"{at}.hit_rate", 100 * outcome.hit_rate, "%"),
            Row(f"{at}.mispredicted", mispredicted(outcome), "%", better="lower"),
            Row(f"{at}.decision_p50", decisions_us[len(decisions_us) // 2], "us", better="lower"),
            Row(f"{at}.decision_p99", decisions_us[int(0.99 * len(decisions_us))], "us", better="lower"),
            Row(f"{at}.changes", outcome.counts["directory_changes"] / outcome.makespan_s, "changes/s"),
            Row(f"{at}.encodings", outcome.counts["directory_encodings"], "encodings"),
            *(
                Row(f"{at}.busy.{_row_name(name)}", 100 * busy, "%", better="lower")
                for name, busy in busy_shares(outcome, num_workers).items()
            ),
        ]
        bench.report.save_partial()
    shares = busy_shares(outcome, num_workers)
    bench.report.rows += [
        Row(f"scale.limit.{_row_name(name)}", num_workers / max(1e-9, shares[name]), "workers") for name in OF_WHOLE
    ]


def busy_shares(outcome: Outcome, num_workers: int) -> dict[str, float]:
    """Of its time, or of all workers' time, that each was busy."""
    return {
        name: outcome.counts[count] / outcome.makespan_s / (1 if name in OF_WHOLE else num_workers)
        for name, count in BUSY.items()
    }


def _row_name(name: str) -> str:
    return name.replace(" ", "_")


def num_planned(sections: Sequence[str], sizes: Sizes) -> int:
    """Simulations, for the progress bar."""
    counts = {
        "eviction": 2 * (len(WORKLOADS) * len(EVICTIONS) + len(PARTLY)),
        "policies": len(EVICTIONS) + len(ROUTINGS),
        "faults": 3,
        "scale": len(sizes.fleets),
    }
    return sum(counts[section] for section in sections)
