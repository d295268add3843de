"""A recorded run as a lesson: its steps' calls under `exact` and under another level, replayed on the recorded text."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from laban.actors.errors import FailedPrecondition
from laban.actors.tuning.lessons import Graph, Lesson, graph_of
from laban.cluster.audit.records import RecordedStep
from laban.cluster.audit.replaying import Variant, replay
from laban.cluster.messages import Language, MessageBook
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import EncodingId, make_spec

BASELINE = "exact"


@dataclass(frozen=True, slots=True)
class Trace:
    """A run under `exact`, as it went. `line` is that of its inputs in their file."""

    line: int
    inputs: Mapping[str, object]
    recorded: tuple[RecordedStep, ...]


@dataclass(slots=True)
class _Side:
    """The run under one level, and what its steps have said there."""

    variant: Variant
    said: list[tuple[str, EncodingId, int, int]] = field(default_factory=list)

    def say(self, recorded: RecordedStep) -> None:
        """The message that a step made, as its call would encode it."""
        variant, address = self.variant, recorded.address
        ready, book = variant.steps[address], variant.book
        call = variant.forced(address, recorded).call
        header, tokens = len(call.tokens), recorded.token_ids
        message = [*call.tokens, *tokens, *call.terminator]
        spec = make_spec(call.namespace, message, call.start, call.view, book.specs)
        variant.keep(address, spec, recorded.text)
        if tokens:  # and that it ends there
            self.said.append((ready.step, spec.encoding_id, header, header + len(tokens) + bool(call.terminator)))

    def graph(self) -> Graph:
        return graph_of(self.said, self.variant.book.specs)


async def lesson_of(trace: Trace, workflow: Workflow, overrides: Overrides, level: str, language: Language) -> Lesson:
    """Raises what a submission under `level` raises, FailedPrecondition for a trace of another workflow, or of a run in
    which nothing was generated."""
    new = [Variant.of(each, workflow, trace.inputs, overrides, MessageBook(language)) for each in (BASELINE, level)]
    sides = [_Side(variant) for variant in new]

    async def say(step: RecordedStep) -> None:
        for side in sides:
            side.say(step)

    await replay([side.variant for side in sides], trace.recorded, say)
    exact, other = (side.graph() for side in sides)
    if not exact.said:
        raise FailedPrecondition("nothing was generated in this run", field="inputs", value=trace.line)
    return Lesson(trace.line, exact, other)


def split(lines: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Those to learn from, and those held out: `share` of them, at least one. The same for the same lines and seed."""
    order = sorted(lines)
    random.Random(seed).shuffle(order)
    num_held = max(1, round(share * len(order)))
    return sorted(order[num_held:]), sorted(order[:num_held])
