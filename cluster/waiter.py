"""A call with one reader: its tokens as chunks, then how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from laban.actors.calls import CallFinished, CallStarted, CallTokens
from laban.actors.errors import of_status
from laban.cluster.records import ErrorInfo, TokenChunk


@dataclass(frozen=True, slots=True)
class Finish:
    event: CallFinished
    worker: str
    waited_ms: float


class Waiter:
    """A call's sink for one reader. Tokens are kept once, as a running text: a slow reader gets larger chunks."""

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._attempt = 1
        self._token_ids: list[int] = []
        self._text = ""
        self._sent = (1, 0, 0)  # attempt, tokens, characters
        self._changed = asyncio.Event()
        self._end: Finish | ErrorInfo | None = None

    def call_requeued(self, key: str, attempt: int) -> None:
        self._attempt, self._token_ids, self._text = attempt, [], ""

    def call_started(self, key: str, attempt: int, worker_id: str, event: CallStarted) -> None:
        self._attempt = attempt

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None:
        self._token_ids.extend(event.token_ids)
        self._text += event.text
        self._changed.set()

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        self._token_ids, self._text = list(event.generated), event.text
        self._end = Finish(event, worker_id, waited_ms)
        self._changed.set()

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None:
        self._end = error
        self._changed.set()

    def give_up(self, error: ErrorInfo) -> None:
        self._end = self._end or error
        self._changed.set()

    async def chunks(self) -> AsyncGenerator[TokenChunk, None]:
        """Ends with the call."""
        while True:
            self._changed.clear()
            attempt, tokens, chars = self._sent if self._sent[0] == self._attempt else (self._attempt, 0, 0)
            if len(self._token_ids) > tokens or len(self._text) > chars:
                self._sent = (attempt, len(self._token_ids), len(self._text))
                new_ids = tuple(self._token_ids[tokens:])
                yield TokenChunk("", self._message_id, attempt, tokens, new_ids, self._text[chars:])
            elif self._end is not None:
                return
            else:
                await self._changed.wait()

    def result(self) -> Finish:
        """Raises the call's error."""
        if isinstance(self._end, Finish):
            return self._end
        assert self._end is not None
        raise of_status(self._end.status)(self._end.message, field=self._end.field)
