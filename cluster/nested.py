"""The steps of one workflow that run another: what begins and ends in there, shown and made readable."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from laban.actors.errors import LabanError
from laban.cluster.board import Board
from laban.cluster.messages import MessageBook
from laban.cluster.records import ErrorInfo, StepResult
from laban.cluster.workflow.children import Began, Ended
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import MessageText


class NestedSteps:
    """`fixed` are the messages that no call makes, by key."""

    def __init__(self, board: Board, messages: Mapping[str, MessageText]) -> None:
        self._board = board
        self.fixed = dict(messages)
        self._begun: dict[str, tuple[float, float]] = {}  # seconds, monotonic; and the time of day

    def begun_s(self, address: str) -> float | None:
        """When a run within that goes on began, in monotonic seconds."""
        begun = self._begun.get(address)
        return None if begun is None else begun[0]

    def take_news(self, run: Run, book: MessageBook) -> ErrorInfo | None:
        """Take over what has begun and ended. Returns the last failure. Raises what framing a message raises."""
        error: ErrorInfo | None = None
        for news in run.take_news():
            if isinstance(news, Began):
                self._begin(news, run, book)
            else:
                error = self._end(news, run, book) or error
        return error

    def _begin(self, news: Began, run: Run, book: MessageBook) -> None:
        self._board.add_steps(StepResult(each.address, each.step, each.agent) for each in news.instances)
        self._board.set_state(news.address, "running", attempt=1)
        self._begun[news.address] = (time.monotonic(), self._board.now)
        try:
            for message in news.messages:
                self._add(message, book)
        except LabanError as error:
            run.fail(news.address, str(error))

    def _end(self, news: Ended, run: Run, book: MessageBook) -> ErrorInfo | None:
        begun = self._begun.pop(news.address, None)
        result = replace(
            self._board.steps[news.address],
            state=news.state,
            text=news.text,
            values=run.values(news.address),
            finish_reason="workflow",
            wall_ms=0.0 if begun is None else max(0.0, self._board.now - begun[1]) * 1000.0,
        )
        if news.message is not None:
            self._add(news.message, book)
        error = None
        if news.state == "failed":
            error = ErrorInfo("FAILED_PRECONDITION", news.reason)
            result = replace(result, error=error, finish_reason="error" if news.text else "")
        self._board.end_step(result)
        return error

    def _add(self, message: MessageText, book: MessageBook) -> None:
        self.fixed[message.key] = message
        book.give(message.key, message.role, message.text, message.name, path=message.key)
