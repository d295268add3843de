"""One recorded run, played again under several levels at once: the same steps, in the same order, on the same text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from laban.actors.calls import Call, Sampling
from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.attempts import kind_of
from laban.cluster.audit.calling import Forced
from laban.cluster.audit.identity import at_share
from laban.cluster.audit.records import AS_WRITTEN, RecordedStep
from laban.cluster.messages import MessageBook, Opening, check_token_ids
from laban.cluster.views import Composed
from laban.cluster.workflow.children import Began
from laban.cluster.workflow.fidelity import Degree
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides, ReadRef, ReadyStep
from laban.kvstore.encodings import EncodingSpec

MAX_AT_ONCE = 4
"""Instances that are measured at the same time: what is kept of each takes memory."""


@dataclass(slots=True)
class Variant:
    """The run under one level: its state, its messages as they are encoded under it, and its instances so far."""

    level: str
    run: Run
    book: MessageBook
    steps: dict[str, ReadyStep] = field(default_factory=dict)

    @classmethod
    def of(
        cls, level: str, workflow: Workflow, inputs: Mapping[str, object], overrides: Overrides, book: MessageBook
    ) -> Variant:
        """`book` is empty. `blended` is at the shares that the workflow states, `blended:0.3` at that one share.

        Raises what a submission raises.
        """
        fidelity, degree = None if level == AS_WRITTEN else level, Degree.of(level)
        if degree is not None and degree.level != level:
            fidelity, workflow = degree.level, at_share(workflow, degree.share)
        run = Run(workflow, inputs, Overrides(fidelity, overrides.seed, overrides.set))
        book.add_fixed(run.messages.values())
        return cls(level, run, book)

    def hand_out(self) -> list[ReadyStep]:
        """The instances that have become ready."""
        ready = self.run.ready() if self.run.state == "running" else ()
        for news in self.run.take_news():
            if isinstance(news, Began):
                for message in news.messages:
                    self.book.give(message.key, message.role, message.text, message.name, path=message.key)
            elif news.message is not None:
                ended = news.message
                self.book.give(ended.key, ended.role, ended.text, ended.name, path=ended.key)
        self.steps |= {step.address: step for step in ready}
        return list(ready)

    def call(
        self, call_id: str, address: str, sampling: Sampling, reads: Sequence[ReadRef] | None = None
    ) -> tuple[Call, Composed]:
        """The instance's call, with other `reads` if some are given."""
        step = self.steps[address]
        book = self.book_of(address)
        entries = book.entries(step.reads if reads is None else reads)
        opening = Opening(step.role, step.name, step.prefill)
        call, composed = book.decode(call_id, f"step {address}", entries, opening, sampling)
        return replace(call, kind=kind_of(self.run.graph.workflow.name, step)), composed

    def forced(self, call_id: str, recorded: RecordedStep, reads: Sequence[ReadRef] | None = None) -> Forced:
        """The same, forced to the recorded text. One without text only encodes the message that it makes."""
        address, tokens = recorded.address, recorded.token_ids
        step = self.steps[address]
        book = self.book_of(address)
        if tokens:
            call, _ = self.call(call_id, address, Sampling(max_tokens=len(tokens), forced=tokens), reads)
            return Forced(call, book.specs)
        framing = book.language.framing
        entries = book.entries(step.reads if reads is None else reads)
        header = framing.header(step.role, step.name, first=not entries, prefill=step.prefill)
        empty = (*header, *framing.terminator(step.role, after_stop_token=False))
        call, _ = book.prefill(call_id, f"step {address}", entries, step.role, empty)
        return Forced(call, book.specs)

    def keep(self, address: str, encoding: EncodingSpec, text: str) -> None:
        """What a call made of an instance's message, which is `text`."""
        step = self.steps[address]
        self.book.of(step.model).add_encoded(address, step.role, step.name, encoding)
        self.book.tell(address, step.role, step.prefill + text, step.name)

    def book_of(self, address: str) -> MessageBook:
        """What the instance's call sees."""
        step = self.steps[address]
        return self.book.of(step.model).under(step.adapter)

    def stands_for_a_run(self, address: str) -> bool:
        """Whether an instance runs a workflow of its own."""
        try:
            return self.run.status(address).kind == "workflow"
        except NotFound:
            return False

    async def look_ahead(self, recorded: RecordedStep) -> None:
        """Before `end`: a long text is made into tokens beside the event loop. Raises as `end` does."""
        text = self._given(recorded)
        if text is not None:
            step = self.steps[recorded.address]
            await self.book.look_ahead(step.role, text, step.name)

    def _given(self, recorded: RecordedStep) -> str | None:
        """The text of an instance without a call; None for one whose message a call made, or nobody."""
        step = self.steps[recorded.address]
        if recorded.state == "failed":
            return step.prefill + recorded.error if step.tries.on_error == "message" else None
        return step.prefill + recorded.text if step.kind == "external" and recorded.state == "succeeded" else None

    def end(self, recorded: RecordedStep) -> None:
        """The instance ended as it was recorded. What a call made of it is in the book."""
        step, text = self.steps[recorded.address], self._given(recorded)
        if text is not None:
            self.book.give(recorded.address, step.role, text, step.name, path="text")
        if recorded.state == "failed":
            self.run.fail(recorded.address, recorded.error)
        else:
            self.run.finish(recorded.address, recorded.text)


async def replay(
    variants: Sequence[Variant], recorded: Sequence[RecordedStep], measure: Callable[[RecordedStep], Awaitable[None]]
) -> None:
    """Plays all `variants` through what was `recorded`, in its order.

    `measure` is awaited for each instance that generated, and has put its message into every book once it returns;
    several run at a time. Raises FailedPrecondition for a recording that is not one of this workflow, InvalidInput for
    tokens in it that are none of the model's.
    """
    by_address = {step.address: (place, step) for place, step in enumerate(recorded)}
    places = asyncio.Semaphore(MAX_AT_ONCE)
    tasks: dict[str, asyncio.Task[None]] = {}

    async def measured(step: RecordedStep) -> None:
        async with places:
            await measure(step)

    def hand_out() -> None:
        first, *others = [variant.hand_out() for variant in variants]
        if any([step.address for step in other] != [step.address for step in first] for other in others):
            raise FailedPrecondition("the levels do not go the same way on the same text", field="recorded")
        for step in first:
            place, told = by_address.get(step.address, (0, None))
            if told is not None and told.state == "succeeded" and step.kind == "generate":
                language = variants[0].book_of(step.address).language
                check_token_ids(language, told.token_ids, f"recorded[{place}].token_ids")
                tasks[step.address] = asyncio.create_task(measured(told))

    try:
        hand_out()
        for step in recorded:
            if any(variant.run.state != "running" for variant in variants):
                break
            if variants[0].stands_for_a_run(step.address):
                continue  # its own instances are in the recording
            if any(step.address not in variant.steps for variant in variants):
                raise FailedPrecondition("the run does not come to this step", field="recorded", value=step.address)
            if step.address in tasks:
                await tasks.pop(step.address)
            for variant in variants:
                await variant.look_ahead(step)
                variant.end(step)
            hand_out()
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
