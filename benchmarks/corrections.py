"""What `corrected` changes where the same texts are read again and again, each time after others.

    python benchmarks/corrections.py [--views 40] [--held-out 10] [--tolerances 0.05,0.01] [--json]

Readers are given three of seven texts of this project's documentation, in a random order, an instruction that never
changes, and a question that is new each time. After so many views that the pool learns from, each held-out view is
read under `exact`, which also writes the answer, and then, with that answer, under the other levels. Printed are the KL
divergence from `exact` a token, as a part of that of `direct`, and the share of the tokens read that were not encoded;
and the same of views whose reads are `direct` or `exact` at random, as many as `corrected` reused.
"""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from inprocess import CapturedLogits, open_engine, run_calls
from report import ROOT, Clock, Row, add_arguments, finish, new_report
from torch import Tensor

from laban.actors.calls import Sampling
from laban.actors.engine.engine import Engine
from laban.actors.frames import Framing
from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.views import Entry
from laban.cluster.workflow.fidelity import TOLERANCE, Fidelity

POOL_TOKENS = 60_000
NUM_TEXTS, NUM_READ = 7, 3
TEXT_CHARS = range(250, 600)
TARGET, MIXTURE_TARGET = 0.5, 0.7
PROMPT = "You answer questions about a program from the texts that you are given."
INSTRUCTION = "Use the texts above. Say in one sentence what they tell of the question, and quote a word of them."
THINGS = ("memory", "a message", "the worker", "the encoding", "a call", "the model", "an error", "a token", "speed")
ASKED = (
    "What is said of {}?", "Why does {} matter here?", "How does {} change?", "Who needs {}, and when?",
    "What happens to {} in the end?", "Which text speaks of {}?", "Is {} ever lost?", "What does {} cost?",
)  # fmt: skip


@dataclass(slots=True)
class Shelf:
    """Texts read under one level. Shelves of other names share nothing."""

    name: str
    engine: Engine
    framing: Framing
    texts: list[str]
    book: MessageBook = field(init=False)

    def __post_init__(self) -> None:
        namespace = f"{self.engine.info.namespace}/{self.name}"
        language = Language(self.framing, self.engine.tokenizer, namespace, self.engine.info.max_context)
        self.book = MessageBook(language)
        self.book.add_text("prompt", "system", PROMPT, None, path="")
        self.book.add_text("instruction", "user", INSTRUCTION, None, path="")
        for number, text in enumerate(self.texts):
            self.book.add_text(f"text{number}", "user", text, None, path="")

    def entries(self, view: View, levels: list[Fidelity], tolerance: float = TOLERANCE) -> list[Entry]:
        """`levels` are of the texts, the instruction and the question."""
        keys = [*(f"text{number}" for number in view.texts), "instruction", "question"]
        self.book.add_text("question", "user", view.question, None, path="")
        entries = [Entry(self.book.messages["prompt"])]
        read = zip(keys, levels, strict=True)
        return entries + [Entry(self.book.messages[key], level, tolerance=tolerance) for key, level in read]

    def write(self, entries: list[Entry], num_tokens: int) -> tuple[int, ...]:
        """What the model answers."""
        sampling = Sampling(max_tokens=num_tokens)
        call, _ = self.book.decode(f"{self.name}/write", "answer", entries, Opening("assistant"), sampling)
        generated = run_calls(self.engine, [call])[call.call_id].generated
        self.rest()
        return generated

    def force(self, entries: list[Entry], answer: tuple[int, ...]) -> tuple[Tensor, float]:
        """The log-probabilities of each token of the answer [tokens, vocab_size], and the share of what was read that
        was not encoded for it."""
        header = self.framing.header("assistant")
        tokens = [*header, *answer]
        call, _ = self.book.prefill(f"{self.name}/force", "answer", entries, "assistant", tokens)
        with CapturedLogits(self.engine.runner, len(tokens)) as captured:  # type: ignore[arg-type]
            done = run_calls(self.engine, [call])[call.call_id]
        self.rest()
        given = captured.logits()[len(header) - 1 : len(tokens) - 1].log_softmax(-1)
        return given, done.tokens_reused / done.tokens_read

    def rest(self) -> None:
        """Lets the engine do what it does when nobody waits."""
        while self.engine.has_work():
            self.engine.step()


@dataclass(frozen=True, slots=True)
class View:
    texts: tuple[int, ...]
    question: str

    @property
    def num_reads(self) -> int:
        return len(self.texts) + 2


@dataclass(slots=True)
class Sum:
    """Over tokens and views."""

    kl: list[Tensor] = field(default_factory=list)
    top1: list[Tensor] = field(default_factory=list)
    reused: list[float] = field(default_factory=list)

    def add(self, wanted: Tensor, given: Tensor, reused: float) -> None:
        self.kl.append((wanted.exp() * (wanted - given)).sum(-1))
        self.top1.append((wanted.argmax(-1) == given.argmax(-1)).float())
        self.reused.append(reused)

    @property
    def kl_mean(self) -> float:
        return float(torch.cat(self.kl).mean())

    @property
    def reuse(self) -> float:
        return sum(self.reused) / len(self.reused)

    def rows(self, name: str) -> list[Row]:
        return [
            Row(f"{name}.kl_mean", self.kl_mean, "nats", better="lower"),
            Row(f"{name}.kl_p95", float(torch.cat(self.kl).quantile(0.95)), "nats", better="lower"),
            Row(f"{name}.top1_agreement", float(torch.cat(self.top1).mean()), ""),
            Row(f"{name}.reused", self.reuse, ""),
        ]


def paragraphs(folder: Path, rng: random.Random) -> list[str]:
    """Of the documentation's prose."""
    blocks = [b for path in sorted(folder.glob("*.md")) for b in re.split(r"\n\s*\n", path.read_text())]
    prose = [" ".join(b.split()) for b in blocks if b[0].isalpha() and len(b) in TEXT_CHARS and "|" not in b]
    return rng.sample(prose, NUM_TEXTS)


def drawn(rng: random.Random) -> View:
    return View(tuple(rng.sample(range(NUM_TEXTS), NUM_READ)), rng.choice(ASKED).format(rng.choice(THINGS)))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What `corrected` changes where the same texts are read again.")
    add_arguments(parser)
    parser.add_argument("--views", type=int, default=40, help="that the pool learns from")
    parser.add_argument("--held-out", type=int, default=10, help="views to compare on")
    parser.add_argument("--tolerances", default="0.05", help="nats a token, separated by commas")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    clock, report, rng = Clock(), new_report("corrections", args, part=False), random.Random(args.seed)
    folder = prepare_default_model()
    engine = open_engine(folder, pool_tokens=POOL_TOKENS)
    framing = derive_framing(folder, engine.tokenizer)
    texts = paragraphs(ROOT / "docs", rng)
    tolerances = [float(each) for each in args.tolerances.split(",")]
    shelves = {f"corrected_{each:g}": Shelf(f"corrected_{each:g}", engine, framing, texts) for each in tolerances}
    exact, direct, mixed = (Shelf(name, engine, framing, texts) for name in ("exact", "direct", "mixed"))
    learning = [drawn(rng) for _ in range(3 if args.quick else args.views)]
    for (name, shelf), tolerance in zip(shelves.items(), tolerances, strict=True):
        for number, view in enumerate(learning):
            if number % 20 == 0:
                clock.say(f"{name}: learning from view {number}")
            shelf.write(shelf.entries(view, ["corrected"] * view.num_reads, tolerance), args.tokens)
    sums = {name: Sum() for name in ("direct", *shelves, *(f"mixture_{each:g}" for each in tolerances))}
    for number in range(2 if args.quick else args.held_out):
        view = drawn(rng)
        clock.say(f"comparing on view {number}")
        answer = exact.write(exact.entries(view, ["exact"] * view.num_reads), args.tokens)
        if not answer:
            continue
        wanted, _ = exact.force(exact.entries(view, ["exact"] * view.num_reads), answer)
        sums["direct"].add(wanted, *direct.force(direct.entries(view, ["direct"] * view.num_reads), answer))
        for (name, shelf), tolerance in zip(shelves.items(), tolerances, strict=True):
            entries = shelf.entries(view, ["corrected"] * view.num_reads, tolerance)
            given, reused = shelf.force(entries, answer)
            sums[name].add(wanted, given, reused)
            levels: list[Fidelity] = ["direct" if rng.random() < reused else "exact" for _ in range(view.num_reads)]
            given, _ = mixed.force(mixed.entries(view, levels), answer)
            sums[f"mixture_{tolerance:g}"].add(wanted, given, levels.count("direct") / len(levels))
    usual = sums["direct"].kl_mean
    for name, found in sums.items():
        report.rows += found.rows(name)
        if name != "direct":
            target = TARGET if name.startswith("corrected") else None
            report.rows.append(Row(f"{name}.kl_to_direct", found.kl_mean / usual, "x", target, "lower"))
    for tolerance in tolerances:
        mine, theirs = sums[f"corrected_{tolerance:g}"], sums[f"mixture_{tolerance:g}"]
        part = mine.kl_mean / theirs.kl_mean if theirs.kl_mean else 0.0
        report.rows.append(Row(f"corrected_{tolerance:g}.kl_to_mixture", part, "x", MIXTURE_TARGET, "lower"))
    report.rows.append(Row("pool.anchors", engine.corrections.pool.num_anchors, ""))
    report.rows.append(Row("pool.bytes", engine.corrections.pool.num_bytes, "bytes"))
    finish(report, args, clock)


if __name__ == "__main__":
    main()
