"""What happens to a workflow from outside: everything that moves it, as plain values that a journal can keep.

An execution is a function of its submission and its moves: applied again, in order, they bring it to where it was, with
the very events. So a move says all that the execution would otherwise have to ask of a clock, a desk or a setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from laban.actors.calls import CallFinished
from laban.cluster.records import ErrorInfo
from laban.cluster.usage import NO_USAGE, Usage


@dataclass(frozen=True, slots=True)
class Held:
    """Held back whole, before its first step."""

    why: str
    kind: Literal["held"] = "held"


@dataclass(frozen=True, slots=True)
class Started:
    kind: Literal["started"] = "started"


@dataclass(frozen=True, slots=True)
class Resumed:
    """The process that ran it is another one now: what was at a worker or a handler is at nobody."""

    kind: Literal["resumed"] = "resumed"


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody cancelled it."""

    kind: Literal["stopped"] = "stopped"


@dataclass(frozen=True, slots=True)
class CallRequeued:
    address: str
    attempt: int  # the new one
    usage: Usage = NO_USAGE  # of the one before, as far as it was known
    kind: Literal["call_requeued"] = "call_requeued"


@dataclass(frozen=True, slots=True)
class CallBegan:
    address: str
    attempt: int
    worker: str
    kind: Literal["call_began"] = "call_began"


@dataclass(frozen=True, slots=True)
class CallEnded:
    """`waited_ms` is the time before the call was sent to the worker."""

    address: str
    attempt: int
    worker: str
    event: CallFinished
    waited_ms: float
    kind: Literal["call_ended"] = "call_ended"


@dataclass(frozen=True, slots=True)
class CallLost:
    """It failed, and the dispatcher does not try it again."""

    address: str
    attempt: int
    error: ErrorInfo
    usage: Usage = NO_USAGE  # as far as it was known
    kind: Literal["call_lost"] = "call_lost"


@dataclass(frozen=True, slots=True)
class Leased:
    address: str
    attempt: int
    handler: str
    kind: Literal["leased"] = "leased"


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """`max_losses` handlers may be lost in one try."""

    address: str
    attempt: int
    max_losses: int
    kind: Literal["lease_lost"] = "lease_lost"


@dataclass(frozen=True, slots=True)
class Answered:
    """An external step's text. `lease_id` and `handler` are empty for an answer by hand."""

    address: str
    attempt: int
    text: str
    lease_id: str
    handler: str
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True, slots=True)
class Refused:
    """An external step failed; `final`: trying again is of no use."""

    address: str
    attempt: int
    message: str
    lease_id: str
    final: bool
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True)
class TimedOut:
    address: str
    turn: int
    usage: Usage = NO_USAGE  # as far as it was known
    kind: Literal["timed_out"] = "timed_out"


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The wait before another try is over."""

    address: str
    turn: int
    kind: Literal["retry_due"] = "retry_due"


Move = Annotated[
    Held
    | Started
    | Resumed
    | Stopped
    | CallRequeued
    | CallBegan
    | CallEnded
    | CallLost
    | Leased
    | LeaseLost
    | Answered
    | Refused
    | TimedOut
    | RetryDue,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Move] = TypeAdapter(Move, config=ConfigDict(ser_json_inf_nan="constants"))


def move_to_json(move: Move) -> str:
    """Raises ValueError for text that is not valid Unicode."""
    return _ADAPTER.dump_json(move).decode()


def move_from_json(text: str) -> Move:
    """Raises ValueError for what no move was written as."""
    return _ADAPTER.validate_json(text)
