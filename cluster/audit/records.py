"""What an audit is given and what it finds: plain values. Mirrors `proto/laban.proto` field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AS_WRITTEN = "written"
"""The level that stands for the fidelities that the workflow itself states."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """How one instance of the run that is replayed ended. They are given in the order in which they did.

    `error` is that of one that failed.
    """

    address: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    state: Literal["succeeded", "failed"] = "succeeded"
    error: str = ""


@dataclass(frozen=True, slots=True)
class StepAudit:
    """One instance under one level, forced to the recorded text; its lists have an item a token, in nats.

    `read` is the only entry of the step's `read` that was taken at that level, the others being exact; None: all were.
    `num_reused` of `num_read` tokens may be reused under the level: the others are encoded again, whatever is cached.
    With `is_same` the level gives the very view that `exact` gives, and nothing was measured.
    """

    address: str
    step: str
    level: str
    read: int | None = None
    kl: tuple[float, ...] = ()
    agrees: tuple[bool, ...] = ()
    logprob_changes: tuple[float, ...] = ()  # of the recorded token: this less exact
    num_read: int = 0
    num_reused: int = 0
    is_same: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What one instance's text decides, and what it would with the text that the level itself generates greedily in the
    same context. Of a step that samples, `was` is what `exact` decides greedily.

    `was` and `becomes` are JSON; `name` says what is decided: `value NAME`, `vote of STEP`, a gate's unit.
    """

    address: str
    step: str
    level: str
    name: str
    was: str
    becomes: str

    @property
    def flips(self) -> bool:
        return self.was != self.becomes


@dataclass(frozen=True, slots=True)
class Replayed:
    """A whole run with the recorded text, generated token by token from an empty cache, tools' time left out.

    `ttft_ms` is the mean over the steps that generate. Of `num_read` tokens `num_encoded` were encoded.
    """

    level: str
    ttft_ms: float
    wall_ms: float
    num_read: int
    num_encoded: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A level that the workflow cannot be run under, or a step that could not be measured (`address`)."""

    level: str
    reason: str
    address: str = ""


AuditItem = StepAudit | Decision | Replayed | Refused
