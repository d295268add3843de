"""Trains an adapter for each task of fidelity.py, in this process, on the card if there is one; needs PEFT, but no Ray.

    python benchmarks/tune_tasks.py FOLDER [--tasks gsm8k,judge] [--train 48] [--epochs 8]
    python benchmarks/fidelity.py --adapters FOLDER

What the plain model says under `exact` on the inputs to learn from is recorded; then `direct` is trained to say it,
as `laban tune` does. With the same `--train`, `--held-out` and `--seed` as fidelity.py's, that one's held-out inputs
are not among them. FOLDER/TASK has what `laban tune` makes: lessons, checkpoint, scores and the adapter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from fidelity import NUM_HELD_OUT, NUM_TRAIN, open_desk
from report import Clock
from task_runs import Desk, Recording
from tasks import TASKS, Case, Task, cutter, make_task

from laban.actors.models import prepare_default_model
from laban.actors.tuning.lessons import Lesson, write_lessons
from laban.actors.tuning.plan import Said, TunePlan
from laban.actors.tuning.training import Learner, load_model, train
from laban.cluster.tuning.lessons import Trace, lesson_of
from laban.cluster.workflow.states import Overrides

LEVEL = "direct"


def lessons(desk: Desk, task: Task, cases: Sequence[Case], recordings: Sequence[Recording]) -> list[Lesson]:
    language = desk.book(task.name).language

    async def made() -> list[Lesson]:
        traces = [Trace(n, c.inputs, r) for n, (c, r) in enumerate(zip(cases, recordings, strict=True), 1)]
        return [await lesson_of(trace, task.workflow, Overrides(), LEVEL, language) for trace in traces]

    return asyncio.run(made())


def recorded(
    names: Sequence[str], folder: Path, args: argparse.Namespace, clock: Clock
) -> dict[str, tuple[list[Lesson], list[Lesson]]]:
    """Of each task those to learn from, and held-out ones."""
    desk = open_desk(folder, {}, "auto")
    cut = cutter(desk.engine.tokenizer.encode)
    found = {}
    for name in names:
        task = make_task(name, cut, num_train=args.num_train, num_held_out=args.num_held_out, seed=args.seed)
        clock.say(f"{name}: writing")
        both = [
            lessons(desk, task, cases, desk.write(task, cases, lambda _: None)) for cases in (task.train, task.held_out)
        ]
        found[name] = both[0], both[1]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    clock = Clock()
    folder = Path(args.model) if args.model else prepare_default_model(lambda doing, _: clock.say(doing))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = recorded(args.tasks, folder, args, clock)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    plan = TunePlan(learning_rate=args.learning_rate, epochs=args.epochs, batch=args.batch, seed=args.seed)
    for name, (learnt, held) in known.items():
        out = args.folder / name
        out.mkdir(parents=True, exist_ok=True)
        (out / "checkpoint.pt").unlink(missing_ok=True)
        write_lessons(out / "lessons.jsonl", learnt)
        write_lessons(out / "held_out.jsonl", held)

        def tell(said: Said, name: str = name) -> None:
            if said.doing == "training" and said.step % 20 == 0:
                clock.say(f"{name}: step {said.step} of {said.num_steps}, loss {said.loss:.4f}")

        scores = train(Learner(load_model(folder, args.dtype, device), plan, len(learnt)), learnt, held, out, tell)
        assert scores is not None
        print(json.dumps({"task": name, "ratio": scores.ratio, "interval": scores.ratio_interval}), flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains an adapter for each task of fidelity.py.")
    parser.add_argument("folder", type=Path, help="where the adapters are put: FOLDER/TASK/adapter")
    parser.add_argument("--tasks", default=",".join(TASKS), help="by comma (default: all)")
    parser.add_argument("--train", dest="num_train", type=int, default=NUM_TRAIN, help="inputs to learn from")
    parser.add_argument("--held-out", dest="num_held_out", type=int, default=NUM_HELD_OUT)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of a model this small (default 0.001)")
    parser.add_argument("--model", help="a model folder (default: the default model)")
    parser.add_argument("--dtype", default="auto", help="of the plain model (default: bfloat16 on a card)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.tasks = args.tasks.split(",")
    if unknown := [name for name in args.tasks if name not in TASKS]:
        parser.error(f"--tasks: no {', '.join(unknown)}, expected some of {', '.join(TASKS)}")
    return args


if __name__ == "__main__":
    main()
