"""The policies that serve, simulated: a virtual clock, measured rates, and as many workers and workflows as you like.

    .venv/bin/python benchmarks/simulate.py [--only eviction,policies,faults,scale] [--quick]   (make bench-sim)

eviction   lru, cost, steps, and belady, which knows the future, on eight workloads; and cost with --wrong of what it
           is told replaced by mistakes. All see the same calls at the same times
policies   every eviction policy, and every routing policy, in a fleet of 16 workers in which everything takes its time
faults     the same fleet while workers die and join, and messages of the directory are lost, late and repeated
scale      ever more workers, up to 1,024 with 100,000 live workflows: what has no time left first

One workload, one's own policies, or what a cluster recorded (`routing.record`):

    simulate.py --workload graphs --eviction lru,cost,my.module:Mine --device-bytes 20GB --same-times
    simulate.py --replay calls.jsonl --workers 4 --routing cost,my.module:Nearest --kill-every 20 --lost 0.05
    simulate.py --workload fleet --workers 64 --live 5000 --rates benchmarks/results/2026-11-22-gpu.json

Eviction: lru, cost, steps, belady; routing: cost, prefix_affinity, least_loaded, round_robin; or package.module:Class
of your own, found from the current folder. docs/policies.md says how to write one, and what the simulator leaves out.
A whole run is stored in benchmarks/results and drawn in docs/pictures; all others go to build/benchmarks.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

from report import ROOT, SCRATCH, Clock, Report, Row, add_arguments, finish, new_report
from sim_bench import Bench
from sim_costs import GB, Costs
from sim_directory import Post
from sim_flows import Workload
from sim_progress import Progress
from sim_rates import fit
from sim_replay import replay
from sim_sections import (
    EVICTIONS,
    QUICK,
    Sizes,
    disturbances,
    eviction,
    faults,
    mispredicted,
    num_planned,
    policies,
    scale,
)
from sim_workloads import WORKLOADS, fleet
from sim_world import Outcome, Setup

from laban.actors.errors import LabanError
from laban.cluster.routing.policies import load_routing
from laban.cluster.sizes import parse_size
from laban.kvstore.eviction import load_policy
from laban.kvstore.plugins import PolicyFailed

SECTIONS = ("eviction", "policies", "faults", "scale")
ONE = ("workload", "replay", "eviction", "routing", "workers", "live", "same_times", "device_bytes", "host_bytes",
       "disk_bytes", "scale", "kill_every", "join", "lost", "late", "repeated")  # fmt: skip
"""Options of one workload: with any of them nothing else is simulated."""
DEVICE_BYTES, HOST_BYTES = 20 * GB, 40 * GB


class Parser(argparse.ArgumentParser):
    """What is wrong, in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def checked(kind: Callable[[str], float], least: float, most: float, what: str) -> Callable[[str], float]:
    """A number in a range, or what was expected."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
        return value

    return parse


def size(text: str) -> int:
    try:
        return int(str(parse_size(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None


share = checked(float, 0.0, 1.0, "a share from 0 to 1")
seconds = checked(float, 0.001, 1e6, "seconds, more than 0")
count = checked(int, 1, 10**7, "a whole number, 1 or more")


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="simulate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--only SECTIONS | --workload NAME | --replay FILE] [options]",
    )
    add_arguments(made)
    made.add_argument("--only", help=f"sections, by comma: {','.join(SECTIONS)} (default: all)")
    made.add_argument(
        "--wrong",
        type=share,
        metavar="SHARE",
        help="of the uses foretold, those replaced by mistakes (eviction: 0.3; one workload: 0)",
    )
    made.add_argument(
        "--rates",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="fit the costs to a stored result of another benchmark; may be given again",
    )
    one = made.add_argument_group("one workload")
    one.add_argument(
        "--workload",
        choices=[*WORKLOADS, "fleet"],
        metavar="NAME",
        help=f"{', '.join(WORKLOADS)} or fleet (default: graphs; fleet for several workers)",
    )
    one.add_argument("--replay", type=Path, metavar="FILE", help="calls that a cluster recorded, instead of a workload")
    one.add_argument("--eviction", metavar="NAMES", help="policies to compare, by comma (default: all that there are)")
    one.add_argument("--routing", metavar="NAMES", help="likewise (default for several workers: cost)")
    one.add_argument("--workers", type=count, metavar="N", help="default: 1; 4 with any --routing")
    one.add_argument("--live", type=count, metavar="N", help="flows at once in a fleet (default: 50 a worker)")
    one.add_argument("--scale", type=seconds, metavar="X", help="how many flows, as against the whole workload (1)")
    one.add_argument(
        "--same-times",
        action="store_true",
        help="one worker: what is missing costs, but delays nobody, so that all policies see the same",
    )
    one.add_argument("--device-bytes", type=size, metavar="SIZE", help="room a worker (default: 20GB)")
    one.add_argument("--host-bytes", type=size, metavar="SIZE", help="default: 40GB; 0 for none")
    one.add_argument("--disk-bytes", type=size, metavar="SIZE", help="default: none")
    one.add_argument(
        "--kill-every",
        type=seconds,
        metavar="SECONDS",
        help="a worker, any, dies so often, and joins again with nothing after 10 s",
    )
    one.add_argument("--join", type=count, metavar="N", help="so many workers join in the first minute")
    one.add_argument("--lost", type=share, metavar="SHARE", help="of the directory's messages")
    one.add_argument("--late", type=share, metavar="SHARE", help="up to 2 s, after their sender has given them up")
    one.add_argument("--repeated", type=share, metavar="SHARE", help="that come twice")
    return made


def names(given: str | None, default: Sequence[str]) -> list[str]:
    return list(default) if given is None else [name.strip() for name in given.split(",")]


def one_setup(args: argparse.Namespace) -> tuple[Setup, list[str], list[str | None]]:
    """With the eviction and routing policies to go through. Raises ValueError for what cannot be together."""
    among_several = ("routing", "kill_every", "join", "lost", "late", "repeated")
    asked = [each for each in among_several if getattr(args, each) is not None]
    workers = int(args.workers or (4 if asked else 1))
    if workers == 1 and asked:
        raise ValueError(f"--{asked[0].replace('_', '-')}: expected --workers 2 or more")
    if workers > 1 and args.same_times:
        raise ValueError(f"--same-times: expected one worker, got --workers {workers}")
    evictions = names(args.eviction, ["cost"] if args.routing else EVICTIONS)
    routings: list[str | None] = [None] if workers == 1 else list(names(args.routing, ["cost"]))
    for name in evictions:
        load_policy(name, simulated=True)
    for routing in routings:
        if routing is not None:
            load_routing(routing)
    deaths, joins = disturbances(
        workers, every_s=args.kill_every or 0.0, until_s=60.0, num_joining=int(args.join or 0), seed=args.seed
    )
    post = Post(lost=args.lost or 0.0, late=args.late or 0.0, repeated=args.repeated or 0.0)
    if post.lost + post.late > 0.9:
        raise ValueError(f"--lost, --late: expected at most 0.9 together, got {post.lost + post.late:g}")
    sample = 0 if workers == 1 else 16
    setup = Setup(num_workers=workers, post=post, wrong=args.wrong or 0.0, deaths=deaths, joins=joins, sample=sample,
                  fixed=args.same_times, seed=args.seed)  # fmt: skip
    return setup, evictions, routings


def one_workload(args: argparse.Namespace, num_workers: int) -> Workload:
    if args.replay is not None:
        if args.workload is not None:
            raise ValueError("--replay: expected no --workload beside it")
        return replay(args.replay)
    name = args.workload or ("graphs" if num_workers == 1 else "fleet")
    rng, much = random.Random(args.seed), float(args.scale or (0.2 if args.quick else 1.0))
    if name != "fleet":
        return WORKLOADS[name](rng, much)
    live = int(args.live or 50 * num_workers)
    return fleet(rng, max(live, round(2 * live * much)), live)


def simulated(bench: Bench, workload: Workload, costs: Costs, setup: Setup) -> Outcome:
    """Raises ValueError for a policy of one's own that raises anything: what, and where."""
    try:
        return bench.simulate(workload, costs, setup)
    except MemoryError:
        raise
    except Exception as error:
        own = [name for name in (setup.eviction, setup.routing) if name is not None and ":" in name]
        if not own:
            raise
        if isinstance(error, PolicyFailed):
            raise ValueError(f"policy {' or '.join(own)}: {error}") from error
        at = extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}, line {at.lineno}"
        raise ValueError(f"policy {' or '.join(own)}: {type(error).__name__}: {error} ({where})") from error


def simulate_one(args: argparse.Namespace, costs: Costs, clock: Clock) -> Report:
    setup, evictions, routings = one_setup(args)
    workload = one_workload(args, setup.num_workers)
    costs = replace(
        costs,
        device_bytes=args.device_bytes or DEVICE_BYTES,
        host_bytes=HOST_BYTES if args.host_bytes is None else args.host_bytes,
        disk_bytes=args.disk_bytes or 0,
    )
    report = new_report("simulate", args, part=True)
    progress = Progress(clock, len(evictions) * len(routings))
    bench = Bench(report, progress)
    for routing in routings:
        for policy in evictions:
            outcome = simulated(bench, workload, costs, replace(setup, eviction=policy, routing=routing))
            at = f"{workload.name}.{policy}" + ("" if routing is None else f".{routing}")
            bench.add(at, outcome)
            report.rows.append(Row(f"{at}.flows_ended", 100 * outcome.flows / len(workload.flows), "%"))
            if routing is not None:
                report.rows.append(Row(f"{at}.mispredicted", mispredicted(outcome), "%", better="lower"))
                report.rows.append(
                    Row(f"{at}.calls_lost", outcome.counts.get("calls_lost", 0.0), "calls", None, "lower")
                )
    progress.end()
    return report


def simulate_all(args: argparse.Namespace, costs: Costs, clock: Clock) -> Report:
    sections = names(args.only, SECTIONS)
    if unknown := set(sections) - set(SECTIONS):
        raise ValueError(f"--only: no section {', '.join(sorted(unknown))}; expected {', '.join(SECTIONS)}")
    sizes = QUICK if args.quick else Sizes()
    part = set(sections) != set(SECTIONS)
    report = new_report("simulate", args, part=part)
    progress = Progress(clock, num_planned(sections, sizes))
    bench = Bench(report, progress)
    if "eviction" in sections:
        eviction(bench, costs, sizes, wrong=0.3 if args.wrong is None else args.wrong, seed=args.seed)
    if "policies" in sections:
        policies(bench, costs, sizes, seed=args.seed)
    if "faults" in sections:
        faults(bench, costs, sizes, seed=args.seed)
    if "scale" in sections:
        scale(bench, costs, sizes, seed=args.seed)
    progress.end()
    from sim_chart import draw

    folder = args.out or (SCRATCH if args.quick or part else ROOT / "docs" / "pictures")
    for picture in draw(report, sizes.fleets, folder):
        clock.say(f"drawn: {picture}")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    args = made.parse_args(argv)
    sys.path.append(os.getcwd())  # for policies of one's own
    clock = Clock()
    one = [name for name in ONE if getattr(args, name) not in (None, False)]
    try:
        if one and args.only is not None:
            raise ValueError(f"--only: expected no --{one[0].replace('_', '-')} beside it")
        costs = fit(Costs(), args.rates)
        report = (simulate_one if one else simulate_all)(args, costs, clock)
    except MemoryError as error:
        made.error(f"a call has no room: {error}; expected a larger --device-bytes")
    except (LabanError, ValueError) as error:
        made.error(str(error))
    except KeyboardInterrupt:
        clock.say("interrupted")
        return 130
    finish(report, args, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
