"""Trains an adapter for each task of fidelity.py, without Ray, on the card if there is one; needs PEFT.

    python benchmarks/tune_tasks.py FOLDER [--tasks gsm8k,judge] [--redrawn 300 --written 300] [--epochs 4] [--jobs 8]
    python benchmarks/tune_tasks.py FOLDER --together 500 [--together-only]     and then each task's own from that one
    python benchmarks/tune_tasks.py FOLDER --from FOLDER/together/adapter --seconds 200 --jobs 8
    python benchmarks/fidelity.py --adapters FOLDER --recordings FOLDER

What the plain model says under `exact` on the inputs to learn from is recorded; then `direct` is trained to say it,
as `laban tune` does. With the same `--train`, `--held-out` and `--seed` as fidelity.py's, that one's held-out inputs
are not among them. Problems that a package has beyond both are learnt from, too. To these `--redrawn` adds so many
that are drawn again from the same problems, and `--written` so many of problems that the plain model writes itself
(more_cases.py).

With `--together SECONDS` one adapter is trained on the lessons of all tasks first, for so long, and each task's own
starts from it, as it does from any that `--from` names. What is scored then is up to 8 held-out inputs of each task.

FOLDER/TASK has what `laban tune` makes: lessons, scores and the adapter, and the recordings; what is there is not
recorded again. FOLDER/together has the scores, by task, and the adapter of all.
A JSON document a task is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from fidelity import NUM_HELD_OUT, NUM_TRAIN, open_desk
from more_cases import redrawn, written
from report import Clock
from task_recordings import write_or_read
from task_runs import Desk, Recording
from tasks import TASKS, Case, Task, cutter, make_material

from laban.actors.adapter_folder import TARGETS
from laban.actors.errors import LabanError
from laban.actors.models import prepare_default_model
from laban.actors.tuning.lessons import Lesson, read_lessons, write_lessons
from laban.actors.tuning.plan import ATTENTION, Said, TunePlan
from laban.actors.tuning.start import Start, read_start
from laban.actors.tuning.training import Learner, load_model, score, train
from laban.cluster.tuning.lessons import Trace, lesson_of
from laban.cluster.workflow.states import Overrides

LEVEL = "direct"
AT_ONCE = 64  # cases that are recorded
NUM_LEARNT = 32  # lessons learnt from that are told of beside those held out
TOGETHER = "together"  # as a task's name: all of them
SCORED_TOGETHER = 8  # held-out inputs of each task
MAX_EPOCHS = 1000  # of all tasks together, which are trained for a time
OWN_SHARE = 1 / 3  # of the learning rate, for what starts from an adapter
NUM_TIMED = 5  # steps after which it is known how long one takes

T = TypeVar("T")


def lessons_of(desk: Desk, task: Task, cases: Sequence[Case], recordings: Sequence[Recording]) -> list[Lesson]:
    language = desk.book(task.name).language

    async def made() -> list[Lesson]:
        traces = [Trace(n, c.inputs, r) for n, (c, r) in enumerate(zip(cases, recordings, strict=True), 1)]
        return [await lesson_of(trace, task.workflow, Overrides(), LEVEL, language) for trace in traces]

    return asyncio.run(made())


_desks: list[Desk] = []
"""This process's own, made once."""


def recorded(name: str, folder: Path, args: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Writes a task's lessons, those of the packages' own inputs first, and held-out ones; says how many."""
    began, out = time.perf_counter(), args.folder / name
    if not _desks:
        _desks.append(open_desk(folder, {}, "auto", jobs=args.jobs))
    (desk,) = _desks
    sizes = {
        "num_train": args.num_train,
        "num_held_out": args.num_held_out,
        "num_spare": 2 * (args.num_redrawn + args.num_written),
    }
    material = make_material(name, cutter(desk.engine.tokenizer.encode), seed=args.seed, **sizes)
    rng, task = random.Random(f"{args.seed}/{name}/more"), material.task
    clock.say(f"{name}: inputs")
    own = written(desk, material, args.num_written, rng)
    more = redrawn(material, args.num_redrawn + args.num_written - len(own), rng)
    more = rng.sample([*own, *more], len(own) + len(more))
    out.mkdir(parents=True, exist_ok=True)
    made_s = time.perf_counter() - began
    learnt = (*task.train, *material.more, *more)
    for file, cases in ((out / "held_out.jsonl", task.held_out), (out / "lessons.jsonl", learnt)):
        say = partial(_say_written, clock, name, len(cases))
        recordings = write_or_read(desk, task, cases, say, args.folder, AT_ONCE)
        write_lessons(file, lessons_of(desk, task, cases, recordings))
    seconds = round(time.perf_counter() - began, 1)
    return {"task": name, "lessons": len(learnt), "written": len(own), "redrawn": len(more) - len(own),
            "inputs_s": round(made_s, 1), "recording_s": seconds}  # fmt: skip


def _say_written(clock: Clock, name: str, num_cases: int, at: int) -> None:
    clock.say(f"{name}: writing {at} of {num_cases}")


def lessons_in(folder: Path, file: str) -> list[Lesson]:
    """Of a task's folder."""
    return read_lessons(folder / f"{file}.jsonl")


def lessons_together(args: argparse.Namespace) -> tuple[list[Lesson], list[Lesson]]:
    """Of all tasks: to learn from, and some of each that are held out, what they say under their task's name."""
    rng = random.Random(args.seed)
    lessons, held_out = [], []
    for name in args.tasks:
        lessons += lessons_in(args.folder / name, "lessons")
        own = lessons_in(args.folder / name, "held_out")
        held_out += [_named(name, each) for each in rng.sample(own, min(SCORED_TOGETHER, len(own)))]
    return rng.sample(lessons, len(lessons)), held_out


def _named(name: str, lesson: Lesson) -> Lesson:
    exact, level = (
        replace(graph, said=tuple(replace(said, step=name) for said in graph.said))
        for graph in (lesson.exact, lesson.level)
    )
    return replace(lesson, exact=exact, level=level)


def trained(name: str, folder: Path, args: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """A task's adapter, or that of all `TOGETHER`; what is told of it."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = args.folder / name
    out.mkdir(parents=True, exist_ok=True)
    if name == TOGETHER:
        lessons, held_out = lessons_together(args)
    else:
        lessons, held_out = lessons_in(out, "lessons"), lessons_in(out, "held_out")
    start, plan, seconds = planned(name, folder, args)
    learner = Learner(load_model(folder, args.dtype, device), plan, len(lessons), start=start)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    began = time.perf_counter()
    scores = train(learner, lessons, held_out, out, _teller(learner, name, seconds, clock))
    took = time.perf_counter() - began
    (out / "checkpoint.pt").unlink()
    assert scores is not None  # there are held-out ones
    on_learnt = score(learner, lessons[:NUM_LEARNT], lambda doing: None)
    steps = {s.step: [s.num_tokens, round(s.kl_before, 4), round(s.kl_after, 4)] for s in scores.steps}
    return {
        "task": name, "ratio": round(scores.ratio, 4), "interval": [round(x, 4) for x in scores.ratio_interval or ()],
        "learnt_ratio": round(on_learnt.ratio, 4), "tokens_kl_before_after": steps, "lessons": len(lessons),
        "optimizer_steps": learner.step, "training_s": round(took, 1), "options": plan.as_dict(),
        "start": start and start.fingerprint,
    }  # fmt: skip


def planned(name: str, folder: Path, args: argparse.Namespace) -> tuple[Start | None, TunePlan, float | None]:
    """The adapter to start from, how a task's own, or that of all `TOGETHER`, is trained, and for how many seconds."""
    together = name == TOGETHER
    path = args.folder / TOGETHER / "adapter" if args.together and not together else args.start
    start = read_start(path, folder) if path else None
    first, own = args.learning_rate, args.own_learning_rate or args.learning_rate * (OWN_SHARE if start else 1)
    plan = TunePlan(
        rank=args.rank, alpha=args.rank / 2, dropout=args.dropout,
        targets=tuple(TARGETS) if args.all_linear else ATTENTION, learning_rate=first if together else own,
        epochs=MAX_EPOCHS if together else args.epochs, batch=args.together_batch if together else args.batch,
        seed=args.seed, checkpoint_every=1_000_000,
    )  # fmt: skip
    plan.check()
    if start:
        start.check(plan)
    return start, plan, args.together if together else args.seconds


def _teller(learner: Learner, title: str, seconds: float | None, clock: Clock) -> Callable[[Said], None]:
    """Says how far it is. With `seconds` there are as many steps as fit, of the pace at which they are made."""
    planned, began = learner.num_steps, time.perf_counter()
    timed = began

    def tell(said: Said) -> None:
        nonlocal timed
        if said.doing != "training":
            return
        now = time.perf_counter()
        if said.step == NUM_TIMED:
            timed = now
        if seconds and said.step > NUM_TIMED:
            each = (now - timed) / (said.step - NUM_TIMED)
            fit = int(max(0.0, began + seconds - now) / each)
            learner.num_steps = min(planned, said.step + fit)
            learner.num_warm = min(learner.num_warm, round(learner.plan.warmup * learner.num_steps))
        if said.step % 20 == 0:
            clock.say(f"{title}: step {said.step} of {learner.num_steps}, loss {said.loss:.4f}")

    return tell


def spread(
    work: Callable[..., T], each: Iterable[Any], folder: Path, args: argparse.Namespace, clock: Clock
) -> Iterator[T]:
    """In their order, in processes of their own if several are to share the card."""
    if args.jobs == 1:
        yield from (work(one, folder, args, clock) for one in each)
        return
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        yield from pool.map(work, each, repeat(folder), repeat(args), repeat(clock))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    clock = Clock()
    folder = Path(args.model) if args.model else prepare_default_model(lambda doing, _: clock.say(doing))
    for name in [TOGETHER] if args.together else args.tasks[:1]:
        try:
            planned(name, folder, args)
        except LabanError as error:  # before anything is recorded
            raise SystemExit(str(error)) from None
    missing = [name for name in args.tasks if not (args.folder / name / "lessons.jsonl").exists()]
    for said in spread(recorded, missing, folder, args, clock):
        print(json.dumps(said), flush=True)
    _desks.clear()
    if args.record_only:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for names in ([TOGETHER] if args.together else [], [] if args.together_only else args.tasks):
        for told in spread(trained, names, folder, args, clock):
            print(json.dumps(told), flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains an adapter for each task of fidelity.py.")
    parser.add_argument("folder", type=Path, help="where the adapters are put: FOLDER/TASK/adapter")
    parser.add_argument("--tasks", default=",".join(TASKS), help="by comma (default: all)")
    parser.add_argument(
        "--train",
        dest="num_train",
        type=int,
        default=NUM_TRAIN,
        help="inputs to learn from; more, where a package has more",
    )
    parser.add_argument("--held-out", dest="num_held_out", type=int, default=NUM_HELD_OUT)
    parser.add_argument("--redrawn", dest="num_redrawn", type=int, default=0, help="more, of the same problems")
    parser.add_argument(
        "--written", dest="num_written", type=int, default=0,
        help="more, of problems that the model writes (redrawn ones, where it cannot)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="tasks at once, each in a process (default 1)")
    parser.add_argument("--record-only", action="store_true", help="train nothing")
    parser.add_argument("--seconds", type=float, help="train no longer: as many steps as fit")
    parser.add_argument(
        "--together", type=float, metavar="SECONDS",
        help="train one adapter on the lessons of all tasks first, for so long, and start each task's own from it",
    )  # fmt: skip
    parser.add_argument("--together-batch", type=int, default=64, help="of that one (default 64)")
    parser.add_argument("--together-only", action="store_true", help="train no task's own")
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="ADAPTER",
        help="start from this one, of the same rank and projections (with --together the first one does)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of a model this small (default 0.001)")
    parser.add_argument(
        "--own-learning-rate", type=float, metavar="X",
        help="of a task's own (default: a third of --learning-rate where it starts from an adapter)",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, default=64, help="alpha is half of it (default 64)")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--all-linear", action="store_true", help="of all projections, not attention's alone")
    parser.add_argument("--model", help="a model folder (default: the default model)")
    parser.add_argument("--dtype", default="auto", help="of the plain model (default: bfloat16 on a card)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.tasks = args.tasks.split(",")
    if unknown := [name for name in args.tasks if name not in TASKS]:
        parser.error(f"--tasks: no {', '.join(unknown)}, expected some of {', '.join(TASKS)}")
    if args.together is not None and args.together <= 0:
        parser.error(f"--together: {args.together:g} s, expected more than 0")
    if args.together_only and args.together is None:
        parser.error("--together-only: expected --together SECONDS with it")
    return args


if __name__ == "__main__":
    main()
