"""What attempts of a step cost: tokens, by what was done with them, and time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from laban.actors.calls import CallStarted


class Counts(Protocol):
    """Whatever counts tokens and time as a step's result does."""

    @property
    def tokens_read(self) -> int: ...
    @property
    def tokens_reused(self) -> int: ...
    @property
    def tokens_loaded(self) -> int: ...
    @property
    def tokens_encoded(self) -> int: ...
    @property
    def tokens_generated(self) -> int: ...
    @property
    def wall_ms(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as in `records.StepResult`; `wall_ms` from when the step was ready until they had ended."""

    tokens_read: int = 0
    tokens_reused: int = 0
    tokens_loaded: int = 0
    tokens_encoded: int = 0
    tokens_generated: int = 0
    wall_ms: float = 0.0

    @classmethod
    def sum(cls, *parts: Counts) -> Usage:
        return cls(
            tokens_read=sum(part.tokens_read for part in parts),
            tokens_reused=sum(part.tokens_reused for part in parts),
            tokens_loaded=sum(part.tokens_loaded for part in parts),
            tokens_encoded=sum(part.tokens_encoded for part in parts),
            tokens_generated=sum(part.tokens_generated for part in parts),
            wall_ms=sum(part.wall_ms for part in parts),
        )


NO_USAGE = Usage()


class CallUsage:
    """Of a call under way, by what its worker has told of it."""

    def __init__(self) -> None:
        self._started: CallStarted | None = None
        self._num_generated = 0

    def start(self, event: CallStarted) -> None:
        self._started, self._num_generated = event, 0

    def add(self, num_tokens: int) -> None:
        """Generated just now."""
        self._num_generated += num_tokens

    def take(self) -> Usage:
        """So far; what is told next is of another call. One that has generated nothing may have encoded any part of
        what it set out to: none is counted."""
        started, generated = self._started, self._num_generated
        self._started, self._num_generated = None, 0
        if started is None:
            return NO_USAGE
        return Usage(
            tokens_read=started.tokens_read,
            tokens_reused=started.tokens_reused,
            tokens_loaded=started.tokens_loaded,
            tokens_encoded=started.tokens_encoded if generated else 0,
            tokens_generated=generated,
        )
