"""A step that has begun and not ended: which attempt it is at, how often it failed, and the timer it is under."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from laban.actors.calls import FinishReason, Sampling
from laban.actors.errors import shorten
from laban.cluster.messages import Language
from laban.cluster.usage import CallUsage
from laban.cluster.workflow.sampling import instance_seed
from laban.cluster.workflow.states import ReadyStep
from laban.kvstore.encodings import View


def sampling_of(step: ReadyStep, seed: int, language: Language, failures: int = 0) -> Sampling:
    """The step's sampling as a call has it after so many tries that failed; `seed` is the workflow's."""
    spec = step.sampling
    forced = () if spec.forced_text is None else tuple(language.encode(spec.forced_text, "sampling.forced_text"))
    return Sampling(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        seed=seed_of(step, seed, failures),
        stop=tuple(spec.stop),
        forced=forced,
        num_logprobs=spec.logprobs,
        constraint=step.constraint,
        drafting=spec.drafting,
    )


def kind_of(workflow: str, step: ReadyStep) -> str:
    """Of a step's calls, by the workflow's name (`Call.kind`)."""
    return f"{workflow}/{step.step}"


def seed_of(step: ReadyStep, workflow_seed: int, failures: int) -> int:
    """The seed of a step's try after so many that failed: each samples anew."""
    if failures == 0:
        return instance_seed(workflow_seed, step.address) if step.sampling.seed is None else step.sampling.seed
    seed = workflow_seed if step.sampling.seed is None else step.sampling.seed
    return instance_seed(seed, f"{step.address}#{failures + 1}")


def choice_problem(step: ReadyStep, text: str, finish_reason: FinishReason) -> str:
    """Why what `step` generated is none of its choices: it was cut off before it was one. "" if it is one, if it has
    none, and of a text that was forced."""
    chosen = () if step.constraint is None else step.constraint.choices
    if not chosen or text.strip() in chosen or step.sampling.forced_text is not None:
        return ""
    said = f"the text is none of the `choices` (got {shorten(text)}): it was cut off"
    if finish_reason != "length":
        return f"{said} by `stop`"
    most = step.sampling.max_tokens
    return f"{said} after {most} token{'s' if most != 1 else ''}; expected a larger max_tokens"


@dataclass(slots=True)
class Attempt:
    """`number` counts every attempt from 1: those after a try that failed, a worker that died, a handler lost."""

    step: ReadyStep
    at: float  # when the step began, a time of day
    number: int = 1
    failures: int = 0  # tries that failed
    losses: int = 0  # leases that ran out in this try
    turn: int = 0  # counts how often somebody was asked to do it, but for calls that the dispatcher runs again
    is_resting: bool = False  # until its next try
    begun_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())  # seconds, monotonic
    earlier_ms: float = 0.0  # before this turn
    view: View | None = None  # of its call
    usage: CallUsage = field(default_factory=CallUsage)  # of the call under way
    _timer: asyncio.TimerHandle | None = None

    @property
    def may_retry(self) -> bool:
        return self.failures < self.step.tries.max_retries

    def passed_ms(self, now: float) -> float:
        """Since the step began."""
        return max(0.0, now - self.at) * 1000.0

    def begin_turn(self, now: float, on_timeout: Callable[[], None]) -> None:
        """The try, or after a lost handler the attempt, starts now, and with it the time it may take."""
        self.turn += 1
        self.is_resting = False
        self.earlier_ms = self.passed_ms(now)
        timeout_s = self.step.tries.timeout_s
        if timeout_s is not None:
            self.after(timeout_s, on_timeout)

    def next_try(self) -> None:
        """Go on to the next try, which may start after `rest_s`."""
        self.stop_timer()
        self.failures += 1
        self.losses = 0
        self.number += 1
        self.is_resting = True

    @property
    def rest_s(self) -> float:
        """Between the last failure and the next try."""
        return self.step.tries.delay_before_s(self.failures)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have `action` done then, in place of what the timer was set for before."""
        self.stop_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, action)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
