"""The engine on one GPU, on a random Llama of 8B shapes in bfloat16: the numbers to reach, beside vLLM's stored ones.

    .venv/bin/python benchmarks/gpu.py [--only NAMES] [--quick] [--json]      about 2 minutes on one H100

Needs no model folder, no network and no Ray. `--tiny` tries all of it on a CPU; `--profile` prints kernels instead.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from gpu_attention import measure_attention, measure_plan
from gpu_cases import Heads
from gpu_model import Size, describe, measure_ceilings, open_engine
from gpu_peer import MEASURED, peer_rows
from gpu_profile import print_profiles
from gpu_workloads import Desk, measure_agents, measure_cached, measure_dense, measure_itl, measure_panel
from report import Clock, Report, Row, add_arguments, finish, new_report

from laban.kernels.flash_backends import REFERENCE, FlashBackend, pick_flash


@dataclass(slots=True)
class Bench:
    """What the sections share. The engine is made when the first asks for it, and takes the card's memory."""

    size: Size
    device: torch.device
    reps: int
    seed: int
    clock: Clock
    report: Report
    _desk: Desk | None = field(default=None)

    @property
    def desk(self) -> Desk:
        if self._desk is None:
            self.clock.say("making the model and the engine, capturing CUDA graphs")
            engine, rows = open_engine(self.size, self.device, self.seed)
            self.report.rows += rows
            self.report.machine += f"; engine: {engine.info.attention_backend}"
            self._desk = Desk(engine, random.Random(self.seed))
        return self._desk

    def flash(self) -> FlashBackend:
        """The stock FlashAttention that ours is compared with."""
        if self.device.type != "cuda":
            return REFERENCE
        found = pick_flash(self.device, torch.bfloat16, Heads.of(self.size).dim)
        self.report.machine += f"; copies read by {found.name}"
        return found

    def attention(self) -> list[Row]:
        return measure_attention(self.size, self.device, self.reps, self.seed, self.flash(), self.clock.say)


# In this order: what needs no model comes before the engine takes the card's memory.
SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "ceilings": lambda bench: measure_ceilings(bench.size, bench.device, bench.reps),
    "plan": lambda bench: measure_plan(bench.size, bench.device, bench.seed),
    "attention": Bench.attention,
    "dense": lambda bench: measure_dense(bench.desk, bench.size, bench.reps),
    "cached": lambda bench: measure_cached(bench.desk, bench.size, bench.reps),
    "agents": lambda bench: measure_agents(bench.desk, bench.size, bench.reps),
    "panel": lambda bench: measure_panel(bench.desk, bench.size, bench.reps),
    "itl": lambda bench: measure_itl(bench.desk, bench.size, bench.reps),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The number of sections that failed."""
    args = _arguments(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    clock = Clock()
    report = new_report("gpu", args, part=args.tiny or args.only != list(SECTIONS))
    report.machine = f"{describe(device)}, {report.machine}; beside {MEASURED}"
    if args.commit:
        report.commit = args.commit
    bench = Bench(Size(args.tiny), device, args.reps, args.seed, clock, report)
    if args.profile:
        print_profiles(bench.desk, bench.size, device)
        return 0
    num_failed = 0
    for name in args.only:
        clock.say(name)
        try:
            report.rows += SECTIONS[name](bench)
        except Exception:  # the others' numbers are worth having: a card may be lent for minutes only
            traceback.print_exc()
            num_failed += 1
        if device.type == "cuda":
            torch.cuda.empty_cache()
        report.save_partial()
    if not args.tiny:
        report.rows += peer_rows(report)
    finish(report, args, clock)
    return num_failed


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The engine's numbers on one GPU.")
    add_arguments(parser)
    parser.add_argument("--only", help=f"sections, by comma: {','.join(SECTIONS)}")
    parser.add_argument("--reps", type=int, help="repetitions that count (default: 5, with --quick 2)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short texts, on a CPU if need be")
    parser.add_argument("--profile", action="store_true", help="print what the card does in an iteration, and no more")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args(argv)
    args.only = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := set(args.only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    args.only.sort(key=list(SECTIONS).index)
    args.reps = args.reps or (2 if args.quick else 5)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny tries everything on a CPU")
    return args


if __name__ == "__main__":
    sys.exit(main())
