"""Reuse against recomputing and prefix caching: the arms interleaved in one run, at equal forced lengths.

    .venv/bin/python benchmarks/reuse.py [--quick] [--json] [--peer vllm]      (make bench)

reencode             exact, and every step's first message is its own: nothing can be shared
prefix               exact: what an engine with prefix caching reuses of the views as their author ordered them
prefix_shared_first  exact, reads in one order for all and own instructions last: the most that prefix caching can reuse
direct               every message encoded once and read where it is needed
transformers         `generate` on batches of the steps that are ready together
vllm_*               with --peer vllm: the two prefix arms on a vLLM server

All but `transformers` and vLLM go through the real cluster and the client over gRPC. No run finds anything that
an earlier one left: all texts have a salt at their head. To stay under half an hour, the arms that no target is
about are not repeated (--full repeats them): `reencode`, `transformers`, and on the long debate the shared-first ones.
A whole run is stored in benchmarks/results and drawn in docs/reuse.svg; --quick, or a choice of workloads or arms,
goes to build/benchmarks.
"""

from __future__ import annotations

import argparse
import gc
import random
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from estimate import expected_s
from report import ROOT, SCRATCH, Clock, Report, Row, add_arguments, finish, new_report
from rows import ratio_rows, sample_rows
from samples import LABAN_ARMS, Sample, run_on_laban
from texts import FreshRun, fresh_run
from workloads import Workload, Writer, all_workloads

from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model
from laban.actors.tokenizer import Tokenizer
from laban.cluster.client import Client
from laban.cluster.config import EngineSection, LabanConfig, ServerSection
from laban.cluster.launch import start_cluster

POOL_TOKENS = 65_536  # room for the panel's sixteen exact views at once, so that memory decides nothing
VLLM_CACHE_GIB = 3  # as many of the default model's tokens
ARMS = (*LABAN_ARMS, "transformers")
ONCE = ("reencode", "transformers")
ONCE_ON_LONG = {"debate370": ("prefix_shared_first", "vllm_shared_first")}
QUALITY_TOKENS, QUALITY_READERS = 128, 2


@dataclass(slots=True)
class Bench:
    """One benchmark run: its options, its parts, and what it has measured."""

    args: argparse.Namespace
    folder: Path
    clock: Clock
    report: Report
    workloads: dict[str, Workload]
    arms: list[str]
    samples: list[Sample] = field(default_factory=list)

    def rotated(self, repetition: int, workload: str) -> list[str]:
        """The arms in the order of this repetition: rotated, and every other time backwards."""
        by = repetition % len(self.arms)
        arms = (self.arms[by:] + self.arms[:by])[:: -1 if repetition % 2 else 1]
        once = (*ONCE, *ONCE_ON_LONG.get(workload, ()))
        return [a for a in arms if repetition == 0 or self.args.full or a not in once]

    def keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.report.rows = [*sample_rows(self.samples), *ratio_rows(self.samples)]
        self.report.save_partial()
        self.clock.say(
            f"{sample.workload:<20} {sample.arm:<20} run {sample.repetition + 1}: TTFT {sample.ttft_s:7.2f} s,"
            f" end to end {sample.wall_s:7.2f} s, {sample.tokens_encoded} tokens encoded"
        )


def measure_arms(bench: Bench) -> None:
    """Every arm of every workload, interleaved, into `bench.samples`."""
    tokenizer = Tokenizer.from_folder(bench.folder)
    framing = derive_framing(bench.folder, tokenizer)
    writer = Writer(tokenizer)
    rng = random.Random(bench.args.seed)
    with ExitStack() as stack:
        runners: dict[str, Callable[[FreshRun, str, int], Sample]] = {}
        if any(arm in LABAN_ARMS for arm in bench.arms):
            config = LabanConfig(
                model=str(bench.folder), engine=EngineSection(pool_tokens=POOL_TOKENS), server=ServerSection(port=0)
            )
            bench.clock.say("starting the cluster")
            cluster = stack.enter_context(start_cluster(config))
            client = stack.enter_context(Client(cluster.address))
            runners.update(dict.fromkeys(LABAN_ARMS, lambda run, arm, number: run_on_laban(client, run, arm, number)))
        if "transformers" in bench.arms:
            from peer_transformers import TransformersPeer

            bench.clock.say("loading transformers' model")
            theirs = TransformersPeer(bench.folder)
            stack.callback(theirs.close)
            runners["transformers"] = lambda run, arm, number: theirs.run(run, framing, number)
        if bench.args.peer == "vllm":
            import peer_vllm

            bench.clock.say("starting vLLM")
            vllm = peer_vllm.VllmPeer(bench.folder, cache_gib=VLLM_CACHE_GIB)
            stack.callback(vllm.close)
            runners.update(dict.fromkeys(peer_vllm.ARMS, lambda run, arm, number: vllm.run(run, framing, arm, number)))
        for arm in bench.arms:
            short = all_workloads(writer, quick=True)["retrieval"]
            runners[arm](fresh_run(short, writer, rng), arm, -1)
        for repetition in range(bench.args.repetitions):
            for name, workload in bench.workloads.items():
                for arm in bench.rotated(repetition, name):
                    bench.keep(runners[arm](fresh_run(workload, writer, rng), arm, repetition))


def measure_engine(bench: Bench) -> None:
    """Quality and decode speed, in this process, once the cluster has gone."""
    from decode_speed import measure_decode
    from inprocess import open_engine
    from peer_transformers import Generator
    from quality import fewer_readers, measure_quality

    quick = bench.args.quick
    engine = open_engine(bench.folder, pool_tokens=POOL_TOKENS // 2)
    framing = derive_framing(bench.folder, engine.tokenizer)
    writer, rng = Writer(engine.tokenizer), random.Random(bench.args.seed)
    rows = bench.report.rows
    if not bench.args.skip_decode:
        bench.clock.say("decode speed")
        speed = measure_decode(
            engine,
            Generator(bench.folder),
            seed=bench.args.seed,
            blocks=2 if quick else 6,
            num_tokens=12 if quick else 40,
        )
        gc.collect()
        rows += [
            Row("decode.batch1", speed.single, "tokens/s"),
            Row("decode.batch8", speed.batched, "tokens/s"),
            Row("decode.transformers", speed.transformers, "tokens/s"),
            Row("decode.batch1_to_transformers", speed.single_to_transformers, "x", 0.95),
            Row("decode.batch8_to_batch1", speed.batched_to_single, "x", 3.0),
        ]
        bench.report.save_partial()
    for name, workload in bench.workloads.items():
        if "direct" not in bench.arms or bench.args.skip_quality:
            break
        bench.clock.say(f"divergence of direct from exact: {name}")
        readers = fewer_readers(workload, QUALITY_READERS) if name == "panel" else workload
        quality = measure_quality(engine, framing, fresh_run(readers, writer, rng), bench.args.quality_tokens)
        rows += [
            Row(f"{name}.direct.kl_mean", quality.kl_mean, "nats", better="lower"),
            Row(f"{name}.direct.kl_p95", quality.kl_p95, "nats", better="lower"),
            Row(f"{name}.direct.top1_agreement", quality.top1, ""),
        ]
        bench.report.save_partial()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Reuse against recomputing and prefix caching.")
    add_arguments(parser)
    parser.add_argument("--workloads", help="comma-separated; default: all")
    parser.add_argument("--arms", help=f"comma-separated, of {', '.join(ARMS)}; default: all")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--peer", choices=["vllm"], help="add a peer's arms; `make peer-vllm` installs it")
    parser.add_argument("--skip-decode", action="store_true", help="leave out the decode speed")
    parser.add_argument("--skip-quality", action="store_true", help="leave out KL and agreement")
    parser.add_argument("--full", action="store_true", help="repeat every arm")
    parser.add_argument(
        "--quality-tokens",
        type=int,
        default=QUALITY_TOKENS,
        help=f"most tokens of a text whose KL is measured; default {QUALITY_TOKENS}",
    )
    return parser.parse_args()


def chosen(given: str | None, known: list[str], what: str) -> list[str]:
    names = known if given is None else [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"unknown {what} {', '.join(unknown)}, expected some of {', '.join(known)}")
    return [name for name in known if name in names]


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, _interrupted)
    clock = Clock()
    folder = prepare_default_model(lambda doing, share: clock.say(doing))
    tokenizer = Tokenizer.from_folder(folder)
    workloads = all_workloads(Writer(tokenizer), quick=args.quick)
    arms = chosen(args.arms, list(ARMS), "arms")
    if args.peer == "vllm":
        arms += ["vllm_prefix", "vllm_shared_first"]
    names = chosen(args.workloads, list(workloads), "workloads")
    part = args.quick or bool(args.workloads or args.arms or args.skip_decode or args.skip_quality)
    measured = {name: workloads[name] for name in names}
    bench = Bench(args, folder, clock, new_report("reuse", args, part=part), measured, arms)
    planned = [
        (workloads[name], arm) for r in range(args.repetitions) for name in names for arm in bench.rotated(r, name)
    ]
    clock.say(
        f"expected time: about {expected_s(planned, derive_framing(folder, tokenizer)) / 60:.0f} minutes on 2 cores"
    )
    try:
        measure_arms(bench)
        if not (args.skip_decode and args.skip_quality):
            measure_engine(bench)
    except KeyboardInterrupt:
        clock.say(
            f"interrupted: what was measured is in {bench.report.partial_path}" if bench.samples else "interrupted"
        )
        sys.exit(130)
    from chart import draw

    picture = (SCRATCH if part else ROOT / "docs") / "reuse.svg"
    draw(bench.report, names, arms, picture)
    clock.say(f"drawn: {picture}")
    finish(bench.report, args, clock)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
