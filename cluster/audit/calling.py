"""Calls that somebody waits for, one by one or in pairs on the same worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from laban.actors.calls import Call, CallFinished, CallStarted, CallTokens, Scoring
from laban.actors.errors import LabanError, of_status
from laban.cluster.records import ErrorInfo
from laban.cluster.slots import Order
from laban.kvstore.encodings import EncodingId, EncodingSpec

MAX_TRIES = 3
"""Of a pair whose worker was lost between the two, or had to drop what it kept."""


class Calls(Protocol):
    """`cluster.dispatch.Dispatcher`."""

    def submit(self, orders: Iterable[Order]) -> None: ...

    def abort(self, keys: Iterable[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Ended:
    worker_id: str
    event: CallFinished
    waited_ms: float


@dataclass(frozen=True, slots=True)
class Forced:
    """A forced call and the encodings of its family, as an Order has them."""

    call: Call
    specs: Mapping[EncodingId, EncodingSpec]


class Caller:
    """Implements CallSink: orders calls and waits for their ends."""

    def __init__(self, dispatcher: Calls, *, rank: int) -> None:
        self._dispatcher = dispatcher
        self._rank = rank
        self._waiting: dict[str, asyncio.Future[Ended]] = {}

    async def run(self, forced: Forced, worker_id: str | None = None) -> Ended:
        """Runs one call, at that worker if one is named. Raises the LabanError that it failed with."""
        call = replace(forced.call, rank=self._rank)
        key = call.call_id
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._waiting[key] = ended
        try:
            self._dispatcher.submit([Order(call, self, forced.specs, rank=self._rank, worker_id=worker_id)])
            return await ended
        finally:
            del self._waiting[key]
            if not ended.done() or ended.cancelled():
                self._dispatcher.abort([key])

    async def compare(self, kept: Forced, others: Iterable[Forced]) -> tuple[Ended, list[Ended]]:
        """Runs `kept`, and then `others` where it ran, each compared with it. All are forced to the same tokens."""
        others = list(others)
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                return await self._compare(kept, others)
            except LabanError as error:
                if not tries_left or error.status not in ("FAILED_PRECONDITION", "UNAVAILABLE"):
                    raise
        raise AssertionError("the last try raises")

    async def _compare(self, kept: Forced, others: list[Forced]) -> tuple[Ended, list[Ended]]:
        key = kept.call.call_id
        first = await self.run(_scored(kept, Scoring(keep=key)) if others else kept)
        ended = []
        for number, other in enumerate(others, 1):
            scoring = Scoring(against=key, release=number == len(others))
            ended.append(await self.run(_scored(other, scoring), first.worker_id))
        return first, ended

    # What the dispatcher tells

    def call_requeued(self, key: str, attempt: int) -> None:
        """It runs again."""

    def call_started(self, key: str, attempt: int, worker_id: str, event: CallStarted) -> None:
        """Its end is what counts."""

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None:
        """They are known."""

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        future = self._waiting.get(key)
        if future is not None and not future.done():
            future.set_result(Ended(worker_id, event, waited_ms))

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None:
        future = self._waiting.get(key)
        if future is not None and not future.done():
            future.set_exception(of_status(error.status)(error.message))


def _scored(forced: Forced, scoring: Scoring) -> Forced:
    return replace(forced, call=replace(forced.call, scoring=scoring))
