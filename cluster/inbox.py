"""What happens to one workflow, one thing after the other: written to the journal first, then applied."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from laban.actors.errors import FailedPrecondition, LabanError
from laban.actors.lasting import going_on
from laban.actors.logs import about
from laban.cluster.journal_records import Line
from laban.cluster.moves import Move, move_from_json, move_to_json

logger = logging.getLogger(__name__)


class MoveLog(Protocol):
    """Where moves are written; `cluster.journal.Journal`."""

    def append(self, line: Line, then: Callable[[], None]) -> None:
        """Call `then` in the event loop once the line is written, in the order of the calls."""


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
        """`apply` takes a move and when it came, and may raise a LabanError for who brought it. Whatever else it raises
        is logged, and what is behind the move goes on."""
        self._workflow_id = workflow_id
        self._apply = apply
        self._log = log
        self._clock = clock
        self._last_event = last_event
        self._num_written = 0  # or about to be
        self._num_applied = 0
        self._waiting: deque[_Entry] = deque()
        self._closed: LabanError | None = None

    def close(self, why: LabanError) -> None:
        """Apply nothing more, and write nothing: who waits, or comes, is told why."""
        self._closed = why
        waiting, self._waiting = self._waiting, deque()
        for entry in waiting:
            entry.done(why)

    def put(self, move: Move, done: Callable[[LabanError | None], None] = lambda error: None) -> None:
        """`done` is told once the move has been applied, and what it raised; without it nobody hears of that.

        Raises ValueError for a move with text that is not valid Unicode, where there is a log.
        """
        if self._closed is not None:
            done(self._closed)
            return
        at = self._clock()
        if self._log is None:
            self._do(_Entry(move, at, done))
            return
        number = self._num_written + 1
        line = Line(self._workflow_id, number, at, self._num_applied, self._last_event(), move_to_json(move))
        self._num_written = number
        self._waiting.append(_Entry(move, at, done))
        self._log.append(line, self._written)

    async def replay(self, lines: Iterable[Line], ahead: Callable[[Move], Awaitable[None]]) -> None:
        """Apply what was written before, each move after `ahead` of it.

        Raises FailedPrecondition if it does not give what it gave then, ValueError for a line that cannot be read, and
        what applying raises but for a LabanError.
        """
        then: dict[int, int] = {}  # events, by how many moves had been applied
        for line in lines:
            then[line.applied] = line.event
            expected, found = then.get(self._num_applied), self._last_event()
            if expected is not None and expected != found:
                raise FailedPrecondition(
                    f"its journal does not give what it gave before: after {self._num_applied} moves there are {found} "
                    f"events, expected {expected}"
                )
            self._num_written = line.number
            move = move_from_json(line.move)
            await ahead(move)
            self._num_applied += 1
            with suppress(LabanError):
                self._apply(move, line.at)

    async def deliver(self, move: Move) -> None:
        """Put a move in and wait until it is applied. Raises what it raises.

        Who is cancelled meanwhile has brought it all the same.
        """
        await self._wait(partial(self.put, move))

    def behind(self, action: Callable[[], None]) -> None:
        """Have something done once all that is here has been applied: at once, mostly. It is written nowhere."""
        if self._closed is not None:
            return
        entry = _Entry(None, 0.0, lambda error: action())
        if self._waiting:
            self._waiting.append(entry)
        else:
            self._do(entry)

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
        if self._closed is not None:
            return
        self._do(self._waiting.popleft())
        while self._waiting and self._waiting[0].move is None:
            self._do(self._waiting.popleft())

    def _do(self, entry: _Entry) -> None:
        """Raises nothing: who comes next would be taken for another."""
        error: LabanError | None = None
        if entry.move is not None:
            self._num_applied += 1
            try:
                self._apply(entry.move, entry.at)
            except LabanError as raised:
                error = raised
            except Exception:
                logger.exception("a move was not applied", extra=about(workflow=self._workflow_id))
                error = LabanError("an internal error; the server's log says more")
        with going_on("telling what became of a move"):
            entry.done(error)
