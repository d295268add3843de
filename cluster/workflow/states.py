"""What a run says to whoever executes it: fixed messages, steps that are ready, states of instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from laban.actors.calls import Constraint
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, TOLERANCE, Fidelity
from laban.cluster.workflow.sampling import SamplingSpec

MAX_RETRY_DELAY_S = 3600.0

RunState = Literal["running", "succeeded", "failed", "cancelled"]
InstanceState = Literal["waiting", "ready", "running", "succeeded", "failed", "skipped", "cancelled"]


@dataclass(frozen=True, slots=True)
class MessageText:
    """A fixed message, or an agent's role prompt (key `agent:bob`), its template rendered. `varies`: with the inputs,
    so that one run's is hardly another's."""

    key: str
    role: str
    name: str | None
    text: str
    private: bool
    varies: bool = False


@dataclass(frozen=True, slots=True)
class ReadRef:
    """One message of a view, in order. `key` is a fixed message's name, `agent:NAME`, or an instance's address.

    `begin` and `end` bound the tokens read of the framed message; None: from its start, to its end.
    """

    key: str
    fidelity: Fidelity
    begin: int | None = None
    end: int | None = None
    index: int | None = None  # which entry of the step's `read` it is of; None: the agent's prompt, put first
    recompute_share: float = RECOMPUTE_SHARE  # if it is blended
    tolerance: float = TOLERANCE  # if it is corrected


@dataclass(frozen=True, slots=True)
class Tries:
    """How long an attempt of a step may take, and what follows one that failed.

    Retry n (from 1) begins `delay_s * 2 ** (n - 1)` seconds after the failure. `on_error` says what becomes of the
    last failure: "message" makes its message the step's text.
    """

    timeout_s: float | None = None
    max_retries: int = 0
    delay_s: float = 0.0
    on_error: Literal["fail", "skip", "message"] = "fail"

    def delay_before_s(self, retry: int) -> float:
        return min(self.delay_s * 2.0 ** min(retry - 1, 32), MAX_RETRY_DELAY_S)


@dataclass(frozen=True, slots=True)
class Task:
    """What an external step asks, and of whom. `args` and `output_schema` are plain JSON values."""

    tool: str
    args: Mapping[str, object]
    description: str = ""
    output_schema: Mapping[str, object] | None = None
    lease_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """An instance whose reads are all there. `role` and `name` are of the message that it makes.

    `task` is an external step's. One with a `problem` cannot begin (its arguments are wrong): fail it with that.
    """

    address: str
    step: str
    agent: str | None
    round: int | None
    kind: Literal["generate", "external"]
    role: str
    name: str | None
    prefill: str  # the start of the generated message; may be empty
    reads: tuple[ReadRef, ...]
    sampling: SamplingSpec
    fidelity: Fidelity | Literal["mixed"]  # a summary of its reads'
    tries: Tries = Tries()
    task: Task | None = None
    problem: str = ""
    constraint: Constraint | None = None  # of what is generated
    model: str = ""  # that is called; "": the default
    adapter: str = ""  # with which it is; "": none


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """`reason` says why a failed, skipped or cancelled instance is so."""

    address: str
    step: str
    agent: str | None
    round: int | None
    kind: Literal["generate", "external", "workflow"]
    state: InstanceState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """The count of one vote: member -> ballots, in the members' order. Texts that name no member abstain."""

    vote: str
    winner: str  # the address that won; ties, and no ballot at all, go to the earliest member
    ballots: tuple[tuple[str, int], ...]
    abstained: int


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the caller of a run changes: every fidelity, every seed, sampling values of a step or an instance.

    `set` maps (address or step, sampling field) to a value; a number may be given as its text. `tolerance` is of
    `auto`, in nats a token, in the place of every other.
    """

    fidelity: str | None = None
    seed: int | None = None
    set: Mapping[tuple[str, str], object] = field(default_factory=dict)
    tolerance: float | None = None
