"""What traces are told of. The one that keeps them is `tracing.py`, and is imported only where they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from laban.actors.calls import CallFinished

if TYPE_CHECKING:
    from laban.cluster.board import Board
    from laban.cluster.slots import Ticket

Metadata = Iterable[tuple[str, str | bytes]]


class Traces:
    """These are off. Methods are called in the event loop; none of them waits or raises."""

    def request_begun(self, method: str, metadata: Metadata) -> object:
        """For the rest of this task, all is part of it. The result is for `request_ended`."""
        return None

    def request_ended(self, request: object, code: str) -> None: ...

    def here(self) -> str:
        """The span of the request that is being answered, as a W3C traceparent; "" if there is none."""
        return ""

    def follow(self, board: Board, origin: str, *, restored: bool = False) -> None:
        """Tell of a workflow and the attempts of its steps from now on. `origin` is the span that it was submitted in:
        its parent, or for one that is `restored` what it is linked to."""

    def let_go(self, workflow_id: str) -> None:
        """The workflow goes on elsewhere. One that is not followed is no error."""

    def call_ended(self, ticket: Ticket, worker_id: str, ended_at: float, end: CallFinished | str) -> None:
        """A call that was sent to a worker; `end` is how, or the name of the status that it failed with. `ended_at` is
        by the clock that dated the ticket."""

    def trace_id(self, workflow_id: str = "") -> str:
        """Of the workflow, or else of the request that is being answered; "" if there is none. In any thread."""
        return ""

    def close(self) -> None:
        """Send what there is to send; may take a few seconds."""


NO_TRACES = Traces()
