"""Tools: the callables that do external steps, how they are called, and what becomes of what they raise."""

from __future__ import annotations

import inspect
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final

from laban.actors.errors import InvalidInput, LabanError
from laban.cluster.records import Lease

Tool = Callable[..., object]
"""Takes the step's args by name; returns the text, or any JSON value. A parameter `lease` of its gets the Lease,
`lost` a threading.Event that is set once the work is of no use any more."""

UNSET: Final = object()
"""No output: None is one, JSON's null."""

MAX_ERROR = 10_000  # characters
PASSING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED", "UNKNOWN")
POLL_S = 20.0
RENEWALS = 3  # in a lease's time


class ToolError(Exception):
    """Raised by a tool: the step failed, with this message. `final`: trying again is of no use."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.final = final


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool came to: a text, an output, or, with `error`, why it failed."""

    text: str | None = None
    output: object = UNSET
    error: str | None = None
    final: bool = False


def check_tools(tools: Mapping[str, Tool], concurrency: int) -> None:
    if not tools:
        raise InvalidInput("no tool is given, expected a name and a callable at least", field="tools")
    for name, tool in tools.items():
        if not callable(tool):
            raise InvalidInput("expected a callable", field=f"tools[{name!r}]", value=tool)
    if concurrency < 1:
        raise InvalidInput("expected 1 or more", field="concurrency", value=concurrency)


def default_handler() -> str:
    return f"{socket.gethostname()[:100]}-{os.getpid()}"


def takes(tool: Tool, name: str) -> bool:
    """Whether the tool has a parameter of this name."""
    try:
        return name in inspect.signature(tool).parameters
    except (TypeError, ValueError):  # some builtins have none to show
        return False


def arguments_of(tool: Tool, lease: Lease, lost: threading.Event) -> dict[str, Any]:
    """What the tool is called with. An argument of the step's own comes before what goes by the same name here."""
    extra: dict[str, object] = {"lease": lease, "lost": lost}
    return {**{name: value for name, value in extra.items() if takes(tool, name)}, **lease.args}


def outcome_of(result: object) -> Outcome:
    return Outcome(text=result) if isinstance(result, str) else Outcome(output=result)


def failure_of(error: BaseException) -> Outcome:
    if isinstance(error, ToolError):
        return Outcome(error=error.message[:MAX_ERROR], final=error.final)
    return Outcome(error=f"{type(error).__name__}: {error}"[:MAX_ERROR])


def refused(outcome: Outcome, error: LabanError) -> Outcome | None:
    """What to answer instead of an outcome that the server will not have; None: nothing."""
    if outcome.error is not None or error.status not in ("INVALID_ARGUMENT", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"):
        return None
    return Outcome(error=str(error)[:MAX_ERROR])


def pauses() -> Iterator[float]:
    """Seconds to wait before each next try to reach the server."""
    return chain((0.1, 0.2, 0.5, 1.0, 2.0, 5.0), repeat(10.0))
