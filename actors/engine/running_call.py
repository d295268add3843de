"""A call that was admitted, until it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from laban.actors.calls import Call, CallPhases
from laban.actors.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class RunningCall:
    """The sequence that answers it, what is told at the end, its place in the queue, and the sources
    not to be asked again."""

    call: Call
    sequence: Sequence
    submitted_at: float
    tokens_read: int
    tokens_reused: int = 0
    tokens_encoded: int = 0
    tokens_loaded: int = 0
    first_token_at: float | None = None
    last_token_at: float = 0.0
    serial: int = 0
    refused: set[object] = field(default_factory=set)
    told: bool = False  # that it has started
    admitted_at: float = 0.0
    load_began_at: float = 0.0
    load_ended_at: float | None = None
    num_iterations: int = 0  # before it had to make room

    def phases(self) -> CallPhases:
        began, ended = self.load_began_at, self.load_ended_at
        return CallPhases(
            admitted_ms=1000 * (self.admitted_at - self.submitted_at),
            load_began_ms=0.0 if ended is None else 1000 * (began - self.submitted_at),
            load_ended_ms=0.0 if ended is None else 1000 * (ended - self.submitted_at),
            num_iterations=self.num_iterations + self.sequence.num_iterations,
        )

    @property
    def can_be_preempted(self) -> bool:
        decode = self.sequence.decode
        return self.call.sampling is not None and decode is not None and decode.finish_reason is None

    def encoded_instead(self, num_tokens: int) -> None:
        """So many tokens of what it reads were to be loaded, and were encoded."""
        self.tokens_encoded += num_tokens
        self.not_loaded(num_tokens)

    def not_loaded(self, num_tokens: int) -> None:
        """So many tokens of an encoding were not loaded after all; its view may have only a part of them."""
        fewer = min(num_tokens, self.tokens_loaded)
        self.tokens_loaded -= fewer
        self.tokens_reused -= fewer
