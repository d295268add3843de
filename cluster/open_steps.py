"""The steps of one workflow that have begun and not ended, as whoever looks ahead asks about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from laban.cluster.attempts import Attempt
from laban.cluster.board import Board
from laban.cluster.nested import NestedSteps
from laban.cluster.workflow.states import ReadRef


class OpenSteps:
    """Implements outlook.Steps. `attempts` are the open ones, shared with the workflow's execution."""

    def __init__(self, board: Board, attempts: Mapping[str, Attempt], nested: NestedSteps) -> None:
        self._board = board
        self._attempts = attempts
        self._nested = nested

    def is_idle(self) -> bool:
        """Whether the workflow waits for nothing but tools."""
        return all(attempt.step.kind == "external" for attempt in self._attempts.values())

    def states(self) -> Iterator[str]:
        """Of each: ready, running, or external (with a handler, or offered to one)."""
        for address, attempt in self._attempts.items():
            yield "external" if attempt.step.kind == "external" else self._board.steps[address].state

    def begun_s(self, address: str) -> float | None:
        attempt = self._attempts.get(address)
        return self._nested.begun_s(address) if attempt is None else attempt.begun_at

    def queued_reads(self, address: str) -> Sequence[ReadRef] | None:
        attempt = self._attempts.get(address)
        if attempt is None or attempt.step.kind != "generate" or self._board.steps[address].state != "ready":
            return None
        return attempt.step.reads

    def open_reads(self, address: str) -> Sequence[ReadRef] | None:
        attempt = self._attempts.get(address)
        return None if attempt is None or attempt.step.kind != "generate" else attempt.step.reads
