"""What drafting from what is read brings: tokens a second beside the same engine without it, in one run.

    .venv/bin/python benchmarks/drafting.py [--quick] [--json]      about 10 minutes (make bench-drafting)

Two engines over the same weights in this process, on a GPU if there is one, one of which drafts. They generate the same
texts under the same contexts in alternating blocks; a block's ratio is of neighbours, and rows are medians. Texts:

- `revise`: a message of the context again, one word in twelve changed, left out or put in;
- `merge`: sentences of two messages by turns, with words between them;
- `quote`: sentences of a message within a text that is none of it;
- `unrelated`: a text of which nothing was read; `random`: tokens at random;
- `own.greedy`, `own.sampled`: what the model itself writes when asked to revise a message, at temperatures 0 and 1.

All but the last two are given to the model token by token (forced), so that lengths are equal and how much is quoted is
known; drafts are tested against them as against what a model chooses. Nothing is known of a text's kind beforehand.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

from decode_speed import Encoded, encoded, random_tokens
from inprocess import open_engine, second_engine
from report import ROOT, Clock, Row, add_arguments, finish, new_report

from laban.actors.calls import Call, CallFailed, CallFinished, Sampling
from laban.actors.engine.engine import Engine
from laban.actors.models import prepare_default_model

READ_WORDS = 200  # of each message
QUOTED, NOT_QUOTED = 1.5, 0.98
TARGETS = {"revise": QUOTED, "merge": QUOTED, "own.greedy": QUOTED, "unrelated": NOT_QUOTED, "random": NOT_QUOTED}
TARGETS["unrelated.batch_8"] = NOT_QUOTED
BATCHED = ("revise", "unrelated")
CHANGED = 12  # one word in so many

_ids = count()


@dataclass(frozen=True, slots=True)
class Passages:
    """Prose of this repository, as words; `other` is of another sort."""

    read: list[str]
    other: list[str]

    def draw(self, num_words: int, rng: random.Random, *, other: bool = False) -> str:
        words = self.other if other else self.read
        begin = rng.randrange(len(words) - num_words)
        return " ".join(words[begin : begin + num_words])

    def draw_two(self, rng: random.Random) -> tuple[str, str]:
        return self.draw(READ_WORDS, rng), self.draw(READ_WORDS, rng)


def passages() -> Passages:
    read = [(ROOT / "docs" / name).read_text() for name in ("architecture.md", "workflow-language.md", "fidelity.md")]
    prose = re.sub(r"```.*?```|[|`*#]", " ", "\n".join(read), flags=re.DOTALL)
    return Passages(prose.split(), (ROOT / "LICENSE").read_text().split())


def revised(text: str, rng: random.Random) -> str:
    words = text.split()
    made: list[str] = []
    for word in words:
        if rng.randrange(CHANGED):
            made.append(word)
        elif (kind := rng.randrange(3)) == 0:
            made.append(rng.choice(words))
        elif kind == 1:
            made += [word, rng.choice(words)]
    return " ".join(made)


def merged(one: str, other: str, rng: random.Random) -> str:
    between = ("And then:", "On the other hand,", "What is more,", "As the second text says,", "Besides,")
    parts = [re.split(r"(?<=[.;:]) ", text) for text in (one, other)]
    made: list[str] = []
    for pair in zip(*parts, strict=False):
        for sentence in pair:
            made += [rng.choice(between), sentence]
    return " ".join(made)


def quoting(text: str, unrelated: str) -> str:
    sentences, words = re.split(r"(?<=[.;:]) ", text), unrelated.split()
    made: list[str] = []
    for at, sentence in enumerate(sentences):
        made += [*words[20 * at : 20 * at + 20], f'"{sentence}"']
    return " ".join(made)


@dataclass(frozen=True, slots=True)
class Task:
    """What one call reads and generates; `text` None is the model's own."""

    messages: tuple[str, str]
    text: str | None
    temperature: float = 0.0
    token_ids: tuple[int, ...] = ()


def make_task(
    name: str, read: tuple[str, str], engine: Engine, source: Passages, num_tokens: int, rng: random.Random
) -> Task:
    one, two = read
    unrelated = source.draw(num_tokens, rng, other=True)
    if name == "random":
        return Task((one, two), None, token_ids=tuple(random_tokens(engine, num_tokens, rng)))
    if name.startswith("own"):
        return Task((one, two), None, temperature=1.0 if name == "own.sampled" else 0.0)
    made: dict[str, Callable[[], str]] = {
        "revise": lambda: revised(one, rng),
        "merge": lambda: merged(one, two, rng),
        "quote": lambda: quoting(one, unrelated),
        "unrelated": lambda: unrelated,
    }
    return Task((one, two), made[name]())


def calls_of(tasks: list[Task], engine: Engine, num_tokens: int) -> list[Call]:
    """With what they read encoded."""
    tokenizer = engine.tokenizer
    calls = []
    for seed, task in enumerate(tasks):
        framed = [f"<|im_start|>user\n{text}<|im_end|>\n" for text in task.messages]
        framed[-1] += "<|im_start|>user\nRewrite the first text and correct its mistakes.<|im_end|>\n"
        context: Encoded = encoded(engine, [tokenizer.encode(text) for text in framed])
        header = tuple(tokenizer.encode("<|im_start|>assistant\n"))
        forced = task.token_ids or (() if task.text is None else tuple(tokenizer.encode(" " + task.text))[:num_tokens])
        sampling = Sampling(num_tokens, temperature=task.temperature, seed=seed, forced=forced)
        calls.append(Call(f"draft-{next(_ids)}", "bench", context.view, context.stop, header, context.specs, sampling))
    return calls


def run(engine: Engine, calls: list[Call], clock: Callable[[], float]) -> tuple[float, list[CallFinished]]:
    """Tokens a second from the first iteration after which all have begun, and what came."""
    for call in calls:
        engine.submit(replace(call, call_id=f"run-{next(_ids)}"))
    done: list[CallFinished] = []
    began: tuple[float, int] | None = None
    sampled = 0
    while len(done) < len(calls):
        for event in engine.step().events:
            if isinstance(event, CallFailed):
                raise RuntimeError(event.message)
            if isinstance(event, CallFinished):
                done.append(event)
        decodes = [s.decode for s in engine.scheduler.sequences if s.decode is not None]
        if began is None and len(decodes) == len(calls) and all(d.num_sampled for d in decodes):
            began = clock(), sum(d.num_sampled for d in decodes)
    assert began is not None
    sampled = sum(result.tokens_generated for result in done)
    return (sampled - began[1]) / (clock() - began[0]), done


@dataclass(slots=True)
class Measured:
    plain: list[float]
    drafted: list[float]
    num_drafted: int = 0
    num_accepted: int = 0
    num_tokens: int = 0

    @property
    def ratio(self) -> float:
        return median(a / b for a, b in zip(self.drafted, self.plain, strict=True))

    def rows(self, name: str, target: float | None) -> list[Row]:
        refused = self.num_drafted - self.num_accepted
        return [
            Row(f"{name}.plain", median(self.plain), "tokens/s"),
            Row(f"{name}.drafting", median(self.drafted), "tokens/s"),
            Row(f"{name}.accepted", 100 * self.num_accepted / max(1, self.num_tokens), "% of tokens"),
            Row(f"{name}.refused", 100 * refused / max(1, self.num_tokens), "% of tokens"),
            Row(f"{name}.ratio", self.ratio, "x", target),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What drafting from what is read brings.")
    add_arguments(parser)
    parser.add_argument("--model", type=Path, help="folder of the model (default: the default model)")
    parser.add_argument("--blocks", type=int, default=7, help="of each kind of text")
    parser.add_argument("--tokens", type=int, default=160, help="that each call generates")
    parser.add_argument("--only", help="this case alone, such as revise or revise.batch_8")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for a machine that others use, too")
    args = parser.parse_args()
    if args.quick:
        args.blocks, args.tokens = 1, 40
    clock, report = Clock(), new_report("drafting", args, part=args.only is not None)
    plain = open_engine(args.model or prepare_default_model(), pool_tokens=16_384)
    drafting = second_engine(plain, pool_tokens=16_384, drafting=True)
    source, rng = passages(), random.Random(args.seed)
    kinds = ("revise", "merge", "quote", "unrelated", "random", "own.greedy", "own.sampled")
    cases = {name: (name, 1) for name in kinds} | {f"{name}.batch_8": (name, 8) for name in BATCHED}
    measured = {label: Measured([], []) for label in cases if args.only in (None, label)}
    if not measured:
        parser.error(f"--only {args.only}: expected one of {', '.join(cases)}")
    time_s = time.process_time if args.cpu_time else time.perf_counter
    for block in range(args.blocks + 1):  # the first is not counted
        for label, found in measured.items():
            name, batch = cases[label]
            read = source.draw_two(rng)
            tasks = [make_task(name, read, plain, source, args.tokens, rng) for _ in range(batch)]
            order = (plain, drafting) if block % 2 else (drafting, plain)
            told = {engine: run(engine, calls_of(tasks, engine, args.tokens), time_s) for engine in order}
            in_order = [sorted(told[e][1], key=lambda r: int(r.call_id.rpartition("-")[2])) for e in order]
            texts = [[result.generated for result in results] for results in in_order]
            if name != "own.sampled" and texts[0] != texts[1]:
                clock.say(f"{name}: two texts part where the two likeliest tokens are as good as equal")
            if block:
                found.plain.append(told[plain][0])
                found.drafted.append(told[drafting][0])
                found.num_drafted += sum(result.tokens_drafted for result in told[drafting][1])
                found.num_accepted += sum(result.tokens_accepted for result in told[drafting][1])
                found.num_tokens += sum(result.tokens_generated for result in told[drafting][1])
        clock.say(f"block {block} of {args.blocks}")
    for label, found in measured.items():
        report.rows += found.rows(label, TARGETS.get(label))
    finish(report, args, clock)
    plain.close()
    drafting.close()


if __name__ == "__main__":
    main()
