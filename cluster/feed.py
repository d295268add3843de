"""A workflow's events and its running steps' text, for any number of watchers at their own pace.

Watchers pull: each remembers how far it has read, and nothing is queued for it. A slow one gets the tokens
it missed as one chunk; it never misses an event, and never holds anything up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from laban.actors.errors import Exhausted, InvalidInput, LabanError
from laban.actors.lasting import going_on
from laban.cluster.records import TERMINAL_WORKFLOW, Event, StepResult, TokenChunk

MAX_WATCHERS = 64


@dataclass(slots=True)
class _LiveText:
    attempt: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What of an attempt's text a watcher has."""

    attempt: int
    tokens: int = 0
    chars: int = 0


class Feed:
    """The last event is the one that says how the workflow ended; every watch ends after it."""

    def __init__(self, workflow_id: str, events: Sequence[Event] = ()) -> None:
        self._workflow_id = workflow_id
        self.on_event: Callable[[Event], None] | None = None  # told of each as it is appended
        self._events = list(events)
        self._live: dict[str, _LiveText] = {}
        self._wakes: set[asyncio.Event] = set()
        self._broken: LabanError | None = None

    @property
    def events(self) -> Sequence[Event]:
        return self._events

    @property
    def last_event(self) -> int:
        return len(self._events)

    def append(self, event: Event) -> None:
        """Numbers the event and keeps it. Whatever ends an attempt takes its live text away."""
        if self.on_event is not None:
            with going_on(f"telling of an event of workflow {self._workflow_id}"):  # no onlooker ends a workflow
                self.on_event(event)
        self._events.append(replace(event, number=len(self._events) + 1, workflow_id=self._workflow_id))
        live = self._live.get(event.address)
        if event.result is not None or (live is not None and event.attempt > live.attempt):
            self._live.pop(event.address if event.result is None else event.result.address, None)
        self._wake()

    def add_text(self, address: str, attempt: int, token_ids: Sequence[int], text: str) -> None:
        live = self._live.get(address)
        if live is None or live.attempt != attempt:
            live = self._live[address] = _LiveText(attempt)
        live.token_ids.extend(token_ids)
        live.text += text
        self._wake()

    def break_off(self, why: LabanError) -> None:
        """It goes on elsewhere: watches that have come to the last event end with an error."""
        self._broken = why
        self._wake()

    async def watch(self, after_event: int) -> AsyncGenerator[Event | TokenChunk, None]:
        """Events after number `after_event`, then live. Raises InvalidInput, Exhausted for too many watchers."""
        if not 0 <= after_event <= len(self._events):
            raise InvalidInput(f"expected 0 to {len(self._events)}", field="after_event", value=after_event)
        if len(self._wakes) >= MAX_WATCHERS:
            raise Exhausted(f"the workflow has {len(self._wakes)} watchers, expected at most {MAX_WATCHERS}")
        read = after_event
        history = len(self._events)
        sent: dict[str, _Sent] = {}
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            while True:
                wake.clear()
                while read < len(self._events):
                    event = self._events[read]
                    read += 1
                    # What was over before this watch began needs no chunks: the result has the text.
                    if event.result is not None and read > history:
                        rest = self._rest(event.result, sent.pop(event.result.address, None))
                        if rest is not None:
                            yield rest
                    yield event
                if self._events and self._events[-1].workflow_state in TERMINAL_WORKFLOW:
                    return
                if self._broken is not None:
                    raise self._broken
                for address in list(self._live):
                    chunk = self._next_chunk(address, sent)
                    if chunk is not None:
                        yield chunk
                    if read < len(self._events):
                        break  # events go before the text that follows them
                else:
                    await wake.wait()
        finally:
            self._wakes.discard(wake)

    def _next_chunk(self, address: str, sent: dict[str, _Sent]) -> TokenChunk | None:
        live = self._live.get(address)
        if live is None:
            return None
        had = sent.get(address)
        if had is None or had.attempt != live.attempt:
            had = _Sent(live.attempt)
        if had.tokens == len(live.token_ids) and had.chars == len(live.text):
            return None
        sent[address] = _Sent(live.attempt, len(live.token_ids), len(live.text))
        new_ids = tuple(live.token_ids[had.tokens :])
        return TokenChunk(self._workflow_id, address, live.attempt, had.tokens, new_ids, live.text[had.chars :])

    def _rest(self, result: StepResult, had: _Sent | None) -> TokenChunk | None:
        """What the result has beyond the chunks sent, so that the chunks of a watch add up to the text."""
        if result.state != "succeeded":
            return None
        if had is None or had.attempt != result.attempt:
            had = _Sent(result.attempt)
        token_ids, text = result.token_ids[had.tokens :], result.text[had.chars :]
        if not token_ids and not text:
            return None
        return TokenChunk(self._workflow_id, result.address, result.attempt, had.tokens, token_ids, text)

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()
