"""Runs whose calls are composed and answered by hand, and what is foreseen of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scripted_engine import CharFraming, CharTokenizer

from laban.actors.calls import Call, Sampling
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.outlook import Look, RunOutlook
from laban.cluster.view_tree import ViewTree
from laban.cluster.workflow.children import Began
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import ReadRef, ReadyStep, Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.timing import StepHistory
from laban.kvstore.encodings import flatten, make_spec

HEAD = "version: 1\nname: w\nmessages: {m: hello, n: more}\nagents: {ann: Be Ann, bob: Be Bob}\n"


@dataclass
class Played:
    """A run whose calls are composed and answered by hand, and what was seen of it before each."""

    workflow: Workflow
    history: StepHistory = field(default_factory=StepHistory)
    first_mark: str = ""
    root: str = "^"
    now_s: float = 50.0

    def __post_init__(self) -> None:
        self.run = Run(self.workflow, {})
        self.book = MessageBook(
            Language(CharFraming(self.first_mark, self.root), CharTokenizer(), "space", max_context=10_000)
        )
        for key, message in self.run.messages.items():
            self.book.add_text(key, message.role, message.text, message.name, path=key)
        self.steps: dict[str, ReadyStep] = {}
        self.calls: dict[str, Call] = {}
        self.began: dict[str, float] = {}
        self.queued: set[str] = set()
        self.likelihoods = Likelihoods()
        self.outlook = RunOutlook(self.run, ViewTree(self.book), self, self.history, self.likelihoods, rank=7)

    # Steps

    def begun_s(self, address: str) -> float | None:
        return self.began.get(address)

    def queued_reads(self, address: str) -> Sequence[ReadRef] | None:
        return self.steps[address].reads if address in self.queued else None

    def open_reads(self, address: str) -> Sequence[ReadRef] | None:
        return self.steps[address].reads if self.run.status(address).state == "running" else None

    # Moves

    def look(self) -> Look:
        return self.outlook.look(self.now_s)

    def begin(self) -> list[ReadyStep]:
        """Compose the calls of all that is ready."""
        ready = [step for step in self.run.ready() if not step.problem]
        self.take_news()
        for step in ready:
            self.steps[step.address], self.began[step.address] = step, self.now_s
            if step.kind == "generate":
                entries = self.book.entries(step.reads)
                opening = Opening(step.role, step.name, step.prefill)
                self.calls[step.address], _ = self.book.decode(step.address, "", entries, opening, Sampling(4))
        return ready

    def finish(self, address: str, text: str = "x") -> None:
        step = self.steps[address]
        if step.kind == "generate":
            call = self.calls[address]
            specs = {spec.encoding_id: spec for spec in call.specs}
            tokens = (*call.tokens, *map(ord, text), *call.terminator)
            spec = make_spec(call.namespace, tokens, call.start, call.view, specs)
            self.book.add_encoded(address, step.role, step.name, spec)
        else:
            self.book.add_text(address, step.role, step.prefill + text, step.name, path="text")
        self.run.finish(address, text)
        self.outlook.note(step, "w0")
        self.take_news()

    def fail(self, address: str) -> None:
        step = self.steps[address]
        if step.tries.on_error == "message":
            self.book.add_text(address, step.role, step.prefill + "broken", step.name, path="text")
        self.run.fail(address, "broken")
        self.take_news()

    def take_news(self) -> None:
        for news in self.run.take_news():
            messages = news.messages if isinstance(news, Began) else [] if news.message is None else [news.message]
            for message in messages:
                self.book.add_text(message.key, message.role, message.text, message.name, path=message.key)

    def read(self, address: str) -> list[str]:
        """The encodings that a call reads."""
        return [placed.encoding_id for placed in flatten(self.calls[address].view, self.book.specs)]

    def foreseen(self, look: Look, address: str) -> list[str]:
        found = [reader for reader in look.readers if reader.address == address]
        return [encoding_id for encoding_id, _ in found[0].spot.encodings()] if found else []

    def home(self, key: str) -> str:
        return self.book.messages[key].home.encoding_id


def played(text: str, history: StepHistory | None = None, **options: Any) -> Played:
    made = Played(parse_yaml(HEAD + text), history or StepHistory(), **options)
    made.begin()
    return made


def seconds(**each: float) -> StepHistory:
    learned = StepHistory()
    for name, value in each.items():
        learned.observe("w", name, "external" if name == "tool" else "generate", value)
    return learned
