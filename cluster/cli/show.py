"""What commands show of a workflow: as it goes on, and as it stands."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from laban.actors.errors import Unavailable
from laban.cluster.cli.follow import Followed, document, waiting_line

if TYPE_CHECKING:
    from laban.cluster.cli.tools import ServedTools
    from laban.cluster.client import Client
    from laban.cluster.records import Event, TokenChunk, WorkflowRecord
    from laban.cluster.render import Screen

MAX_HINTS = 20  # on steps that wait for a tool


class Waiting:
    """Says of each step that waits for a tool that nobody here serves what to type, once; of too many no more."""

    def __init__(self, server: str, note: Callable[[str], None]) -> None:
        self._server, self._note = server, note
        self._told: set[tuple[str, str]] = set()

    def see(self, item: Event | TokenChunk, served: Collection[str]) -> None:
        """`served` are the tools that are."""
        if getattr(item, "step_state", None) != "ready":
            return
        address, tool = item.address, getattr(item, "tool", "")
        if not tool or tool in served or (item.workflow_id, address) in self._told:
            return
        self._told.add((item.workflow_id, address))
        if len(self._told) <= MAX_HINTS:
            args = getattr(item, "args", {})
            self._note(waiting_line(item.workflow_id, address, tool, args, _flag(self._server)))


def follow(
    client: Client,
    items: Iterator[Event | TokenChunk],
    screen: Screen,
    server: str,
    served: ServedTools | None = None,
) -> WorkflowRecord | None:
    """Show a workflow to its end, serving it tools. Returns its record, None if there was nothing to show."""
    followed = Followed()
    waiting = Waiting(server, screen.note)
    for item in items:
        if not followed.workflow_id:
            followed.begin(client.get(item.workflow_id))
            if served is not None:
                served.begin(item.workflow_id)
        was_held = followed.held
        followed.apply(item)
        screen.update(followed, item)
        if followed.held and not was_held:
            screen.note(f"{item.workflow_id} {followed.held}")
        waiting.see(item, () if served is None else served.names)
    return client.get(followed.workflow_id) if followed.workflow_id else None


def report(record: WorkflowRecord | None, arguments: Namespace) -> int:
    """Print what a workflow came to; returns the exit code."""
    if record is None:
        raise Unavailable("the server ended the watch before it began; try again")
    show(record, arguments)
    if record.error is not None:
        where = f"{record.error.field}: " if record.error.field else ""
        print(f"laban: the workflow {record.state}: {where}{record.error.message}", file=sys.stderr)
    return 0 if record.state == "succeeded" else 1


def show(record: WorkflowRecord, arguments: Namespace) -> None:
    if arguments.json:
        print(document(record))
    else:
        from laban.cluster.render import print_results

        print_results(record)
        if record.held:
            print(f"{record.workflow_id} {record.held}")
        waiting = [step for step in record.steps if step.tool and step.state == "ready"]
        for step in waiting[:MAX_HINTS]:
            print(waiting_line(record.workflow_id, step.address, step.tool, step.args, _flag(arguments.address)))
        if len(waiting) > MAX_HINTS:
            print(f"... and {len(waiting) - MAX_HINTS} more")


def say_step(record: WorkflowRecord, arguments: Namespace) -> int:
    if arguments.json:
        print(document(record))
    else:
        state = next(step.state for step in record.steps if step.address == arguments.step)
        print(f"{arguments.step}: {state}; {record.workflow_id}: {record.state}")
    return 0


def _flag(server: str) -> str:
    """The flag that `laban` needs to reach this server."""
    from laban.cluster.cli.arguments import default_address

    return "" if server == default_address() else f" --address {server}"
