"""A load of workflows, each followed to its end through whatever happens to the server, and checked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from mixed_flows import KINDS, SURE, TOOL, Flow, Outcome, apart, flows, look_up

from laban.actors.errors import LabanError
from laban.cluster.client_async import AsyncClient
from laban.cluster.records import TERMINAL_WORKFLOW, Event, TokenChunk, WorkflowRecord

AWAY = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
"""What a client is told while the server dies, is away, or has its hands full: try again."""
AGAIN_S = 0.3


@dataclass
class Followed:
    """One workflow as its client saw it."""

    flow: Flow
    key: str
    workflow_id: str = ""
    events: list[Event] = field(default_factory=list)
    chunks: list[TokenChunk] = field(default_factory=list)
    num_watches: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].workflow_state in TERMINAL_WORKFLOW

    def take(self, item: Event | TokenChunk) -> bool:
        """Returns whether it is an event that was not there before."""
        if isinstance(item, TokenChunk):
            self.chunks.append(item)
            return False
        if item.number != len(self.events) + 1:
            self.problems.append(f"event {item.number} after event {len(self.events)}")
            return False
        self.events.append(item)
        return True

    def check(self, expected: Outcome, record: WorkflowRecord) -> Iterator[tuple[str, str]]:
        """What is wrong with a workflow that has ended: the kind of mistake, and what it is."""
        if record.state != expected.state:
            yield "failed", f"{record.state}, expected {expected.state}: {record.error}"
            return
        results = [event.result for event in self.events if event.result is not None]
        counts = Counter(result.address for result in results)
        yield from (("repeated", f"{n} results of {address}") for address, n in counts.items() if n > 1)
        missing = {step.address for step in record.steps} - counts.keys()
        yield from (("missing", f"no result of {address}") for address in missing)
        if (found := Outcome.of(record)) != expected:
            for then, now in zip(expected.steps, found.steps, strict=False):
                if then != now:
                    yield "different", f"{now}, expected {then}"
                    break
            else:
                yield "different", f"{found}, expected {expected}"
        told = {result.address: result for result in results}
        for step in record.steps:
            if step.address in told and told[step.address] != step:
                yield "different", f"its event says {told[step.address]}, its record {step}"
        for chunk in self.chunks:
            result = told.get(chunk.address)
            if result is not None and result.attempt == chunk.attempt:
                end = chunk.index + len(chunk.token_ids)
                if chunk.token_ids[: len(result.token_ids) - chunk.index] != result.token_ids[chunk.index : end]:
                    yield "different", f"a chunk of {chunk.address} is not what became of it"


class Load:
    """Keeps `num_active` workflows going until `finish`; then `audit` says what is wrong."""

    def __init__(self, client: AsyncClient, expected: dict[Flow, Outcome], num_active: int, seed: int) -> None:
        self._client, self.expected, self._num_active = client, expected, num_active
        self._random = random.Random(seed)
        self.followed: list[Followed] = []
        self.on_event: Callable[[Event], None] = lambda event: None
        self._closing = False
        self._handler: asyncio.Task[None] | None = None
        self._lanes: list[asyncio.Task[None]] = []
        self._deck: list[Flow] = []

    def start(self) -> None:
        self._handler = asyncio.create_task(serve_tools(self._client))
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(self._num_active)]

    async def finish(self, within_s: float) -> None:
        """Submit nothing more, and wait for what goes on. What has not ended then is lost."""
        self._closing = True
        await asyncio.wait(self._lanes, timeout=within_s)
        for task in (*self._lanes, self._handler):
            if task is not None:
                task.cancel()
        outcomes = await asyncio.gather(*self._lanes, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def audit(self, before: Sequence[str] = ()) -> dict[str, list[str]]:
        """By kind of mistake, what is wrong with all that was submitted, and with those that were there `before`."""
        wrong: dict[str, list[str]] = {
            kind: [] for kind in ("lost", "doubled", "failed", "repeated", "missing", "different", "watches")
        }
        listed = await everything(self._client)
        ids = [each.workflow_id for each in self.followed if each.workflow_id]
        wrong["doubled"] += [f"{name} was not submitted" for name in {*listed} - {*ids, *before}]
        wrong["lost"] += [f"{name} was there before" for name in {*before} - {*listed}]
        wrong["doubled"] += [f"{name}: {n} keys" for name, n in Counter(ids).items() if n > 1]
        for each in self.followed:
            label = f"{each.flow.name} {each.workflow_id}"
            wrong["watches"] += [f"{label}: {problem}" for problem in each.problems]
            if not each.ended or each.workflow_id not in listed:
                wrong["lost"].append(f"{label}: {len(each.events)} events, {each.events[-1:]}")
                continue
            record = await self._client.get(each.workflow_id)
            for kind, problem in each.check(self.expected[each.flow], record):
                wrong[kind].append(f"{label}: {problem}")
            begin = self._random.randrange(len(each.events))
            async with aclosing(self._client.watch(each.workflow_id, begin)) as items:
                again = [item async for item in items if isinstance(item, Event)]
            if again != each.events[begin:]:
                wrong["watches"].append(f"{label}: another history after event {begin}")
        return wrong

    async def _lane(self) -> None:
        while not self._closing:
            if not self._deck:
                self._deck = self._random.sample([*self.expected], len(self.expected))
            each = Followed(self._deck.pop(), key=f"{self._random.getrandbits(64):x}")
            self.followed.append(each)
            await self._follow(each)

    async def _follow(self, each: Followed) -> None:
        flow = each.flow
        while not each.ended:
            try:
                record = await self._client.submit(flow.text, flow.inputs, idempotency_key=each.key)
                if each.workflow_id not in ("", record.workflow_id):
                    each.problems.append(f"its key now means {record.workflow_id}")
                    return
                each.workflow_id = record.workflow_id
                each.num_watches += 1
                async with aclosing(self._client.watch(each.workflow_id, len(each.events))) as items:
                    async for item in items:
                        if each.take(item) and isinstance(item, Event):
                            self.on_event(item)
            except LabanError as error:
                if error.status not in AWAY:
                    each.problems.append(f"{error.status}: {error}")
                    return
            if not each.ended:
                await asyncio.sleep(AGAIN_S)


async def serve_tools(client: AsyncClient) -> None:
    """Answer external steps, until cancelled."""
    await client.serve_tools({TOOL: look_up}, handler="chaos")


async def everything(client: AsyncClient) -> list[str]:
    """The ids of all workflows that the server has."""
    found: list[str] = []
    token = ""
    while True:
        records, token = await client.list(page_size=1000, page_token=token)
        found += [record.workflow_id for record in records]
        if not token:
            return found


async def undisturbed(
    client: AsyncClient, num_topics: int, kinds: Sequence[str] = KINDS, max_tokens: int = 8
) -> dict[Flow, Outcome]:
    """Of each kind some flows and what they come to, none of which hangs on a near tie."""
    handler = asyncio.create_task(serve_tools(client))
    try:
        found = await asyncio.gather(*(_sure(client, kind, num_topics, max_tokens) for kind in kinds))
    finally:
        handler.cancel()
    return {flow: outcome for outcomes in found for flow, outcome in outcomes.items()}


async def _sure(client: AsyncClient, kind: str, num_topics: int, max_tokens: int) -> dict[Flow, Outcome]:
    found: dict[Flow, Outcome] = {}
    for flow in flows(kind, max_tokens):
        record = await client.wait((await client.submit(flow.text, flow.inputs)).workflow_id)
        assert record.state == "succeeded", record.error
        if apart(record) >= SURE:
            found[flow] = Outcome.of(record)
        if len(found) == num_topics:
            return found
    raise AssertionError(f"too many near ties in flows of the kind {kind}")
