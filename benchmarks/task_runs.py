"""Tasks run on an engine in this process: written under `exact`, then told again under each level on the same text.

What is measured, and of what, is as in `laban audit`: `cluster/audit` has the replay, the decisions, the findings and
the intervals. Three things differ. Arms share nothing, each has a tenant of its own, so that `corrected` meets no
encoding that `exact` has just made; a step of `choices` says the likeliest of them, by the mean log-probability of
their tokens, which needs no grammar; and what is counted as reused is what the engine found, not what it might.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from inprocess import run_calls
from tasks import Case, Task

from laban.actors.calls import CallFinished, Sampling, Scoring
from laban.actors.engine.engine import Engine
from laban.actors.frames import Framing
from laban.cluster.attempts import sampling_of
from laban.cluster.audit.records import AuditItem, Decision, RecordedStep, StepAudit
from laban.cluster.audit.replaying import Variant
from laban.cluster.messages import Language, MessageBook
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides, ReadRef, ReadyStep

EXACT = "exact"
GROUP = 8  # cases that are written, or served, at a time
KEPT = "task"  # under which scores are kept, until others are


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a task. `level` as an audit's; `share` of its reads are at it, at random, the others exact.

    Its encodings are its own, by its name. `workflow` is run in the place of the task's.
    """

    name: str
    level: str
    tolerance: float | None = None
    share: float = 1.0
    workflow: Workflow | None = None
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """One case under one arm. `texts` has what it says by itself, by step, where the step decides anything.

    Tokens are of all its calls' views. `items` are as an audit finds them.
    """

    items: tuple[AuditItem, ...]
    texts: Mapping[str, str]
    num_read: int
    num_reused: int

    @property
    def kl_sum(self) -> float:
        return sum(sum(item.kl) for item in self.items if isinstance(item, StepAudit))


Recording = tuple[RecordedStep, ...]


@dataclass(slots=True)
class Desk:
    """`adapters` are fingerprints by name, of those that the engine computes with."""

    engine: Engine
    framing: Framing
    adapters: Mapping[str, str] = field(default_factory=dict)
    _number: int = 0

    def book(self, pool: str) -> MessageBook:
        """An empty one of a tenant of that name."""
        info = self.engine.info
        namespace = f"{info.namespace}/{pool}"
        language = Language(self.framing, self.engine.tokenizer, namespace, info.max_context, adapters=self.adapters)
        return MessageBook(language)

    def variant(self, task: Task, case: Case, arm: Arm) -> Variant:
        workflow = task.workflow if arm.workflow is None else arm.workflow
        if arm.tolerance is not None and arm.workflow is None:
            workflow = workflow.model_copy(update={"tolerance": arm.tolerance})
        if arm.adapter:
            workflow = workflow.model_copy(update={"adapter": arm.adapter})
        return Variant.of(arm.level, workflow, case.inputs, Overrides(), self.book(f"{task.name}-{arm.name}"))

    def rest(self) -> None:
        """Lets the engine do what it does when nobody waits."""
        while self.engine.has_work():
            self.engine.step()

    # Under `exact`

    def write(
        self, task: Task, cases: Sequence[Case], say: Callable[[int], None], at_once: int = GROUP
    ) -> list[Recording]:
        """What each case's steps say. Greedy, many cases at a time."""
        written: list[Recording] = []
        for first in range(0, len(cases), at_once):
            say(first)
            written += self._written(task, cases[first : first + at_once])
        return written

    def _written(self, task: Task, cases: Sequence[Case]) -> list[Recording]:
        variants = [self.variant(task, case, Arm("written", EXACT)) for case in cases]
        recorded: list[list[RecordedStep]] = [[] for _ in cases]
        while ready := [
            (n, step)
            for n, variant in enumerate(variants)
            if variant.run.state == "running"
            for step in variant.hand_out()
        ]:
            calls = {}
            for number, step in ready:
                sampling = self._sampling(step)
                if step.constraint is not None:
                    text = max(self._options(variants[number], step), key=lambda each: each[1])[0]
                    tokens = tuple(self.engine.tokenizer.encode(text))
                    sampling = Sampling(max_tokens=len(tokens), forced=tokens)
                calls[number, step.address] = variants[number].call(self._key(), step.address, sampling)[0]
            done = run_calls(self.engine, list(calls.values()))
            for (number, address), call in calls.items():
                event = done[call.call_id]
                variants[number].keep(address, event.encoding, event.text)
                recorded[number].append(RecordedStep(address, event.text, event.generated))
                variants[number].end(recorded[number][-1])
        for variant in variants:
            if variant.run.state != "succeeded":
                raise RuntimeError(f"{task.name}: {variant.run.error}")
        return [tuple(each) for each in recorded]

    def _options(self, variant: Variant, step: ReadyStep) -> list[tuple[str, float]]:
        """Each choice and the mean log-probability of its tokens."""
        options = self._choices(step)
        found = [each["again"].comparison for each in self._compared(options, variant, {"again": variant}, {})]
        means = [fmean(each.logprobs) for each in found if each is not None]
        return list(zip((option.text for option in options), means, strict=True))

    def _choices(self, step: ReadyStep) -> list[RecordedStep]:
        """One recording for each text that the step may say."""
        assert step.constraint is not None
        encode = self.engine.tokenizer.encode
        return [RecordedStep(step.address, text, tuple(encode(text))) for text in step.constraint.choices]

    def _sampling(self, step: ReadyStep) -> Sampling:
        """The step's, but greedy and free."""
        sampling = sampling_of(step, 0, self.book("").language)
        return replace(sampling, temperature=0.0, constraint=None)

    # Under other levels

    def serve(self, task: Task, cases: Sequence[Case], recordings: Sequence[Recording], arm: Arm) -> Told:
        """Runs the cases under the arm as if they had said these texts, a group at a time: what the engine learns from
        what it serves, it learns. Tokens are those of all of them."""
        total = _Sum()
        for first in range(0, len(cases), GROUP):
            variants = [self.variant(task, case, arm) for case in cases[first : first + GROUP]]
            told = list(zip(variants, recordings[first : first + GROUP], strict=True))
            for variant in variants:
                variant.hand_out()
            for number in range(max(len(recording) for _, recording in told)):
                now = [(variant, recording[number]) for variant, recording in told if number < len(recording)]
                calls = [variant.forced(self._key(), step).call for variant, step in now]
                done = run_calls(self.engine, calls)
                for (variant, step), call in zip(now, calls, strict=True):
                    total.count(done[call.call_id])
                    variant.keep(step.address, done[call.call_id].encoding, step.text)
                    variant.end(step)
                    variant.hand_out()
                self.rest()
        return total.told()

    def compare(
        self, task: Task, case: Case, recording: Recording, arms: Sequence[Arm], rng: random.Random
    ) -> dict[str, Told]:
        """Each arm, and `exact` itself, on the recorded text."""
        exact = self.variant(task, case, Arm(EXACT, EXACT))
        others = {arm.name: self.variant(task, case, arm) for arm in arms}
        everyone = {EXACT: exact, **others}
        sums = {name: _Sum() for name in everyone}
        for variant in everyone.values():
            variant.hand_out()
        for recorded in recording:
            address = recorded.address
            reads = {arm.name: _drawn(others[arm.name].steps[address].reads, arm.share, rng) for arm in arms}
            (ended,) = self._compared([recorded], exact, others, reads)
            for name, event in ended.items():
                sums[name].count(event)
                if event.comparison is not None:
                    sums[name].items.append(_audited(recorded, everyone[name], name, event))
            self._decide(recorded, exact, others, reads, sums)
            for name, variant in everyone.items():
                variant.keep(address, ended[name].encoding, recorded.text)
                variant.end(recorded)
            for variant in everyone.values():
                variant.hand_out()
        return {name: told.told() for name, told in sums.items()}

    def _compared(
        self, texts: Sequence[RecordedStep], exact: Variant, others: Mapping[str, Variant], reads: Mapping[str, Reads]
    ) -> list[dict[str, CallFinished]]:
        """Of each text of one step the forced call under `exact` and then, in one batch, under all others."""
        bases, calls = [], []
        for number, text in enumerate(texts):
            base = exact.forced(self._key(), text).call
            under = {name: v.forced(self._key(), text, reads.get(name)).call for name, v in others.items()}
            if text.token_ids:  # else there is only a message to be encoded
                kept = f"{KEPT}-{number}"
                base = replace(base, scoring=Scoring(keep=kept))
                under = {name: replace(call, scoring=Scoring(against=kept)) for name, call in under.items()}
            bases.append(base)
            calls.append(under)
        done = run_calls(self.engine, bases)
        done |= run_calls(self.engine, [call for under in calls for call in under.values()])
        return [
            {EXACT: done[base.call_id]} | {name: done[call.call_id] for name, call in under.items()}
            for base, under in zip(bases, calls, strict=True)
        ]

    def _decide(
        self, recorded: RecordedStep, exact: Variant, others: Mapping[str, Variant], reads: Mapping[str, Reads],
        sums: Mapping[str, _Sum],
    ) -> None:  # fmt: skip
        """What each says by itself, where that decides anything: the likeliest choice, or its own greedy text."""
        step = exact.steps[recorded.address]
        if step.sampling.forced_text is not None:
            return
        texts: dict[str, str] = {}
        if step.constraint is not None:
            texts = self._chosen(step, exact, others, reads)
        elif exact.run.may_decide(step.address):
            sampling = self._sampling(step)
            calls = {
                name: variant.call(self._key(), step.address, sampling, reads[name])[0]
                for name, variant in others.items()
            }
            done = run_calls(self.engine, list(calls.values()))
            texts = {EXACT: recorded.text} | {name: done[call.call_id].text for name, call in calls.items()}
        for name, text in texts.items():
            sums[name].texts[step.address] = text
            if name != EXACT:
                sums[name].items += _decisions(exact, step, name, texts[EXACT], text)

    def _chosen(
        self, step: ReadyStep, exact: Variant, others: Mapping[str, Variant], reads: Mapping[str, Reads]
    ) -> dict[str, str]:
        best: dict[str, tuple[float, str]] = {}
        options = self._choices(step)
        for option, ended in zip(options, self._compared(options, exact, others, reads), strict=True):
            for name, event in ended.items():
                found = event.comparison
                if found is None:
                    continue
                for whose, logprobs in ((name, found.logprobs), (EXACT, found.kept_logprobs)):
                    if whose not in best or fmean(logprobs) > best[whose][0]:
                        best[whose] = fmean(logprobs), option.text
        return {name: text for name, (_, text) in best.items()}

    def _key(self) -> str:
        self._number += 1
        return f"task-{self._number}"


Reads = Sequence[ReadRef]


@dataclass(slots=True)
class _Sum:
    items: list[AuditItem] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    num_read: int = 0
    num_reused: int = 0

    def count(self, event: CallFinished) -> None:
        self.num_read += event.tokens_read
        self.num_reused += event.tokens_reused

    def told(self) -> Told:
        return Told(tuple(self.items), self.texts, self.num_read, self.num_reused)


def _drawn(reads: Reads, share: float, rng: random.Random) -> Reads:
    """So many at their level, at random, the others exact."""
    if share >= 1:
        return reads
    return [read if rng.random() < share else replace(read, fidelity=EXACT) for read in reads]


def _audited(recorded: RecordedStep, variant: Variant, level: str, event: CallFinished) -> StepAudit:
    found = event.comparison
    assert found is not None
    changes = tuple(a - b for a, b in zip(found.logprobs, found.kept_logprobs, strict=True))
    return StepAudit(
        recorded.address,
        variant.steps[recorded.address].step,
        level,
        None,
        found.kl,
        found.agrees,
        changes,
        event.tokens_read,
        event.tokens_reused,
    )


def _decisions(exact: Variant, step: ReadyStep, level: str, was: str, becomes: str) -> Iterator[Decision]:
    if step.constraint is not None:
        yield Decision(step.address, step.step, level, "choice", was, becomes)
        return
    before, after = (exact.run.decides(step.address, text) for text in (was, becomes))
    for name in dict.fromkeys([*before, *after]):
        yield Decision(step.address, step.step, level, name, str(before.get(name)), str(after.get(name)))
