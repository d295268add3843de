"""A call that was admitted, until it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from laban.actors.calls import Call, CallFinished, CallPhases, CallStarted
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

    def started(self) -> CallStarted:
        """What is told when it begins."""
        return CallStarted(
            self.call.call_id,
            self.tokens_read,
            self.tokens_reused,
            tokens_loaded=self.tokens_loaded,
            tokens_encoded=self.tokens_encoded,
        )

    def finished(self, now_s: float) -> CallFinished:
        """What is told at the end, once its sequence is published. If it was scored that is over."""
        call, sequence = self.call, self.sequence
        assert sequence.spec is not None
        own = sequence.decode if call.sampling is not None else None  # a prefill may be answered by another's message
        return CallFinished(
            call.call_id,
            own.finish_reason if own and own.finish_reason else "prefill",
            sequence.spec,
            tuple(own.generated) if own else (),
            own.text if own else "",
            self.tokens_read,
            self.tokens_reused,
            self.tokens_encoded,
            ttft_ms=1000 * ((self.first_token_at or now_s) - self.submitted_at),
            wall_ms=1000 * (now_s - self.submitted_at),
            logprobs=tuple(own.logprobs) if own else (),
            tokens_generated=own.num_sampled if own else 0,
            tokens_loaded=self.tokens_loaded,
            phases=self.phases(),
            comparison=own.scorer.end() if own and own.scorer else None,
            tokens_drafted=own.tokens_drafted if own else 0,
            tokens_accepted=own.tokens_accepted if own else 0,
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
