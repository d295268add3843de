"""Audits one recorded run: what each level changes in what its steps would say, and what it saves.

Three passes over the same text. First every instance under every level beside `exact`, forced: their distributions are
compared where the logits are; what an instance's text decides is decided once more by the level's own greedy text. Then
the worst steps, one read at a time. Last whole runs token by token from an empty cache, for time.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

from laban.actors.calls import Comparison
from laban.actors.errors import Exhausted, FailedPrecondition, LabanError
from laban.cluster.attempts import sampling_of
from laban.cluster.audit.apart import PREDICTED, apart
from laban.cluster.audit.calling import Caller, Calls, Ended, Forced
from laban.cluster.audit.choosing import asks_for
from laban.cluster.audit.records import AS_WRITTEN, AuditItem, Decision, RecordedStep, Refused, Replayed, StepAudit
from laban.cluster.audit.replaying import Variant, replay
from laban.cluster.messages import MessageBook
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import flatten, make_spec

BASELINE = "exact"


class Forgetful(Protocol):
    """`cluster.routing.directory_view.DirectoryView`."""

    def unwatch(self, source: str) -> None: ...


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """A run to be audited: what was submitted, how it went under `exact`, and the levels to replay it under.

    Reads are taken apart one by one in at most `num_apart` instances of a level, the worst ones.
    """

    workflow: Workflow
    inputs: Mapping[str, object]
    overrides: Overrides
    recorded: tuple[RecordedStep, ...]
    levels: tuple[str, ...]
    num_apart: int = 0


class Audit:
    """One audit, under way."""

    def __init__(
        self,
        request: AuditRequest,
        new_book: Callable[[str], MessageBook],
        dispatcher: Calls,
        directory: Forgetful,
        rank: int,
    ) -> None:
        """`new_book` gives an empty one of the caller's, or of a part of its encodings."""
        self._request, self._new_book, self._directory = request, new_book, directory
        self._name = f"audit-{secrets.token_hex(8)}"
        self._caller = Caller(dispatcher, rank=rank)
        self._found: asyncio.Queue[AuditItem | None] = asyncio.Queue()
        self._measured: list[StepAudit] = []
        self._free: dict[tuple[str, str], str] = {}  # (level, address) -> what the level itself generates there
        self._worker_of: dict[str, str] = {}
        self._seed = request.overrides.seed or 0

    async def items(self) -> AsyncGenerator[AuditItem, None]:
        """What is found, as it is found. Raises what a submission raises, and what calls failed with."""
        work = asyncio.create_task(self._run())
        work.add_done_callback(lambda _: self._found.put_nowait(None))
        try:
            while (item := await self._found.get()) is not None:
                yield item
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._directory.unwatch(self._name)

    async def _run(self) -> None:
        exact = await asyncio.to_thread(self._variant, BASELINE)
        others = []
        for level in self._request.levels:
            try:
                others.append(await asyncio.to_thread(self._variant, level))
            except LabanError as error:  # a private message would leak, say
                self._found.put_nowait(Refused(level, str(error)))
        await replay([exact, *others], self._request.recorded, lambda step: self._compare(step, exact, others))
        self._decide(exact, others)
        for other in others:
            await self._take_apart(exact, other)
        for variant in [exact, *others]:
            await self._time(variant.level)

    def _predicts(self, level: str) -> bool:
        """Whether encodings under that level may be predicted from others."""
        return level == PREDICTED or (level == AS_WRITTEN and asks_for(self._request.workflow, PREDICTED))

    def _beside(self, step: RecordedStep, variant: Variant, forced: Forced, what: str = "beside") -> Forced:
        """A call whose view is not that of `exact`, as it is to be run after that."""
        if not self._predicts(variant.level):
            return forced
        namespace = variant.book_of(step.address).language.namespace
        call = apart(forced.call, namespace, f"{self._name}-{variant.level}-{what}")
        return Forced(call, {spec.encoding_id: spec for spec in call.specs})

    def _variant(self, level: str, part: str = "") -> Variant:
        request = self._request
        return Variant.of(level, request.workflow, request.inputs, request.overrides, self._new_book(part))

    # Side by side

    async def _compare(self, step: RecordedStep, exact: Variant, others: Sequence[Variant]) -> None:
        base = exact.forced(self._key(step, BASELINE), step)
        forced = [other.forced(self._key(step, other.level), step) for other in others]
        differs = [_view_of(one) != _view_of(base) for one in forced]
        runs = [
            self._beside(step, other, one) if is_other else one
            for other, one, is_other in zip(others, forced, differs, strict=True)
        ]
        compares = bool(step.token_ids)
        if compares:
            try:
                compared_with = [one for one, is_other in zip(runs, differs, strict=True) if is_other]
                first, compared = await self._caller.compare(base, compared_with)
            except Exhausted as error:
                self._found.put_nowait(Refused("", str(error), step.address))
                compares = False
            else:
                rest = iter(compared)
                ended = [first, *(next(rest) if is_other else first for is_other in differs)]
        if not compares:  # its message is only encoded
            ended = [await self._caller.run(one) for one in [base, *runs]]
        self._worker_of[step.address] = ended[0].worker_id
        for variant, one, asked in zip([exact, *others], ended, [base, *forced], strict=True):
            made, plain = one.event.encoding, asked.call
            if made.namespace != plain.namespace:  # set apart: known here as what it is in the tenant's own space
                made = make_spec(plain.namespace, made.tokens, made.start, plain.view, asked.specs)
            variant.keep(step.address, made, step.text)
        for other, one, call, is_other in zip(others, ended[1:], forced, differs, strict=True):
            if compares or not is_other:
                self._add(_audited(step, other, one, call, None, is_same=not is_other))
        await self._generate(step, exact, [o for o, d in zip(others, differs, strict=True) if d])

    def _add(self, audited: StepAudit) -> None:
        self._measured.append(audited)
        self._found.put_nowait(audited)

    async def _generate(self, step: RecordedStep, exact: Variant, others: Sequence[Variant]) -> None:
        """What each level says by itself where something is decided by it."""
        ready = exact.steps[step.address]
        if ready.sampling.forced_text is not None or not exact.run.may_decide(step.address):
            return
        samples = ready.sampling.temperature > 0
        for variant in [*([exact] if samples and others else []), *others]:
            book = variant.book_of(step.address)
            sampling = replace(sampling_of(ready, self._seed, book.language), temperature=0.0)
            call, _ = variant.call(self._key(step, variant.level, "free"), step.address, sampling)
            forced = self._beside(step, variant, Forced(call, book.specs))
            ended = await self._caller.run(forced, self._worker_of[step.address])
            self._free[variant.level, step.address] = ended.event.text

    def _decide(self, exact: Variant, others: Sequence[Variant]) -> None:
        for step in self._request.recorded:
            ready = exact.steps.get(step.address)
            if ready is None or step.state != "succeeded" or ready.kind != "generate":
                continue
            if ready.sampling.forced_text is not None or not exact.run.may_decide(step.address):
                continue
            was = exact.run.decides(step.address, self._free.get((BASELINE, step.address), step.text))
            for other in others:
                text = self._free.get((other.level, step.address))  # none: its view is the very same
                becomes = was if text is None else exact.run.decides(step.address, text)
                for name in dict.fromkeys([*was, *becomes]):
                    told = (json.dumps(found.get(name), ensure_ascii=False, default=str) for found in (was, becomes))
                    self._found.put_nowait(Decision(step.address, ready.step, other.level, name, *told))

    # One read at a time

    async def _take_apart(self, exact: Variant, other: Variant) -> None:
        own = [one for one in self._measured if one.level == other.level and one.read is None and one.kl]
        own = [one for one in own if not one.is_same]
        recorded = {step.address: step for step in self._request.recorded}
        for worst in sorted(own, key=lambda one: -fmean(one.kl))[: self._request.num_apart]:
            step = recorded[worst.address]
            level_reads, exact_reads = other.steps[step.address].reads, exact.steps[step.address].reads
            base = exact.forced(self._key(step, BASELINE, "apart"), step)
            singly: dict[int, Forced] = {}
            for index in dict.fromkeys(read.index for read in level_reads if read.index is not None):
                pairs = zip(level_reads, exact_reads, strict=True)
                reads = [level if level.index == index else plain for level, plain in pairs]
                call = other.forced(self._key(step, other.level, f"read-{index}"), step, reads)
                if _view_of(call) != _view_of(base):
                    singly[index] = call
            if len(singly) < 2:  # the whole of it is the only one
                continue
            # Each in a part of its own: what is exact for one read is what another one asks for.
            runs = [self._beside(step, other, call, f"{step.address}-{index}") for index, call in singly.items()]
            _, ended = await self._caller.compare(base, runs)
            for (index, call), one in zip(singly.items(), ended, strict=True):
                self._add(_audited(step, other, one, call, index))

    # Whole runs

    async def _time(self, level: str) -> None:
        """Nothing of it is shared with what was encoded before."""
        variant = await asyncio.to_thread(self._variant, level, f"{self._name}-{level}")
        ttfts_ms: list[float] = []
        tokens = [0, 0]

        async def generate(step: RecordedStep) -> None:
            ended = await self._caller.run(variant.forced(self._key(step, level, "timed"), step))
            event = ended.event
            variant.keep(step.address, event.encoding, step.text)
            ttfts_ms.append(event.ttft_ms + ended.waited_ms)
            tokens[0] += event.tokens_read
            tokens[1] += event.tokens_read - event.tokens_reused

        began_s = time.monotonic()
        await replay([variant], self._request.recorded, generate)
        wall_ms = (time.monotonic() - began_s) * 1000.0
        self._found.put_nowait(Replayed(level, fmean(ttfts_ms) if ttfts_ms else 0.0, wall_ms, *tokens))

    def _key(self, step: RecordedStep, level: str, what: str = "forced") -> str:
        return f"{self._name}/{step.address}/{level}/{what}"


def _view_of(forced: Forced) -> tuple[object, ...]:
    return forced.call.view, forced.call.start, forced.call.tokens


def _audited(
    step: RecordedStep, variant: Variant, ended: Ended, forced: Forced, read: int | None, *, is_same: bool = False
) -> StepAudit:
    num_tokens, event = len(step.token_ids), ended.event
    found = event.comparison
    if is_same:
        zeros = (0.0,) * num_tokens
        found = Comparison(zeros, (True,) * num_tokens, zeros, zeros)
    if found is None:
        raise FailedPrecondition("the worker compared nothing", field="recorded", value=step.address)
    changes = tuple(a - b for a, b in zip(found.logprobs, found.kept_logprobs, strict=True))
    num_reused = event.tokens_read if is_same else _num_reusable(variant, step, forced)
    return StepAudit(
        step.address,
        variant.steps[step.address].step,
        variant.level,
        read,
        found.kl,
        found.agrees,
        changes,
        event.tokens_read,
        num_reused,
        is_same,
    )


def _num_reusable(variant: Variant, step: RecordedStep, forced: Forced) -> int:
    """Tokens of the view that are read where their messages were encoded when they were made."""
    book = variant.book_of(step.address)
    homes = {entry.message.home.encoding_id for entry in book.entries(variant.steps[step.address].reads)}
    specs = {spec.encoding_id: spec for spec in forced.call.specs}
    placed = flatten(forced.call.view, specs)
    return sum(each.num_tokens for each in placed if each.encoding_id in homes)
