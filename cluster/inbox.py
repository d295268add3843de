"""What happens to one workflow, one thing after the other: written to the journal first, then applied."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from laban.actors.errors import LabanError
from laban.cluster.moves import Move


class MoveLog(Protocol):
    """Where a workflow's moves are written; `cluster.journal.Journal`."""

    def append(
        self, workflow_id: str, number: int, at: float, event: int, move: Move, then: Callable[[], None]
    ) -> None:
        """Call `then` in the event loop once the move is written, in the order of the calls. `number` counts the
        workflow's moves from 1; `event` is the number of its last event when the move came."""


@dataclass(slots=True)
class _Entry:
    """A move, or with `move` None something to be done behind those before it."""

    move: Move | None
    at: float
    done: Callable[[LabanError | None], None]


class Inbox:
    """Lives in one event loop. Without a log moves are applied as they come."""

    def __init__(
        self,
        workflow_id: str,
        apply: Callable[[Move, float], None],
        *,
        log: MoveLog | None,
        clock: Callable[[], float],
        last_event: Callable[[], int] = lambda: 0,
    ) -> None:
        """`apply` takes a move and when it came, and may raise a LabanError for who brought it."""
        self._workflow_id = workflow_id
        self._apply = apply
        self._log = log
        self._clock = clock
        self._last_event = last_event
        self.num_moves = 0  # written, or about to be
        self._waiting: deque[_Entry] = deque()

    def put(self, move: Move, done: Callable[[LabanError | None], None] = lambda error: None) -> None:
        """`done` is told once the move has been applied, and what it raised; without it nobody hears of that."""
        at = self._clock()
        if self._log is None:
            self._do(_Entry(move, at, done))
            return
        self.num_moves += 1
        self._waiting.append(_Entry(move, at, done))
        self._log.append(self._workflow_id, self.num_moves, at, self._last_event(), move, self._written)

    async def deliver(self, move: Move) -> None:
        """Put a move in and wait until it is applied. Raises what it raises.

        Who is cancelled meanwhile has brought it all the same.
        """
        await self._wait(partial(self.put, move))

    def behind(self, action: Callable[[], None]) -> None:
        """Have something done once all that is here has been applied: at once, mostly. It is written nowhere."""
        if self._waiting:
            self._waiting.append(_Entry(None, 0.0, lambda error: action()))
        else:
            action()

    async def settled(self) -> None:
        """Wait until all that is here has been applied."""
        if self._waiting:
            await self._wait(lambda done: self.behind(lambda: done(None)))

    async def _wait(self, begin: Callable[[Callable[[LabanError | None], None]], None]) -> None:
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: LabanError | None) -> None:
            if outcome.done():  # nobody waits any more
                return
            if error is None:
                outcome.set_result(None)
            else:
                outcome.set_exception(error)

        begin(done)
        await outcome

    def _written(self) -> None:
        self._do(self._waiting.popleft())
        while self._waiting and self._waiting[0].move is None:
            self._do(self._waiting.popleft())

    def _do(self, entry: _Entry) -> None:
        error: LabanError | None = None
        if entry.move is not None:
            try:
                self._apply(entry.move, entry.at)
            except LabanError as raised:
                error = raised
        entry.done(error)
