"""What the control plane tells its callers: workflows, steps, events, token chunks, session messages.

Frozen dataclasses of plain values. They mirror `proto/laban.proto` field by field; the gateway
translates, nothing else does. Times of day are seconds since the epoch, durations milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from laban.actors.calls import CacheCounters, TokenLogprob, WorkerRates
from laban.actors.reach import Reach
from laban.cluster.usage import NO_USAGE, Usage
from laban.cluster.workflow.fidelity import Fidelity

WorkflowState = Literal["running", "succeeded", "failed", "cancelled"]
StepState = Literal["waiting", "ready", "running", "succeeded", "failed", "cancelled", "skipped"]
"""`waiting`: what it reads is not there yet. `ready`: its call is queued, or an external step waits for a handler.
`running`: a worker is at it, or a handler. `skipped`: it will never run."""

FinishReason = Literal["", "stop", "length", "forced", "prefill", "external", "error", "workflow"]

EventKind = Literal["workflow_state", "step_state", "step_result"]
Layout = Literal["packed", "as_encoded"]

TERMINAL_WORKFLOW: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
TERMINAL_STEP: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "skipped"})


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why something failed. `status` is the name of a grpc.StatusCode."""

    status: str
    message: str
    field: str = ""  # the path of the offending input, where there is one


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step instance, as far as it has come. Tokens are those of the last attempt; times begin with the first.
    `earlier_attempts` have what is known of those before it, `total` is all together.

    Of `tokens_read`, `tokens_reused` were found encoded; of these, `tokens_loaded` had to be brought from host memory,
    disk or another worker. `tokens_drafted` were guessed from what was read; `tokens_accepted` of them are in the text.
    `text` is what was generated, without the step's prefill text; `token_ids` are its tokens as kept. `values` are what
    was found in it. `tool` and `args` are of an external step that has begun, whose `worker` is its handler.
    `attempt` counts from 1; 0 means that the instance has not run. `model` is the name of the one that was called, with
    `adapter`.
    """

    address: str
    step: str
    agent: str | None = None
    attempt: int = 0
    state: StepState = "waiting"
    fidelity: str = "exact"
    text: str = ""
    token_ids: tuple[int, ...] = ()
    tokens_read: int = 0
    tokens_reused: int = 0
    tokens_loaded: int = 0
    tokens_encoded: int = 0
    tokens_generated: int = 0
    ttft_ms: float = 0.0
    wall_ms: float = 0.0
    worker: str = ""
    finish_reason: FinishReason = ""
    error: ErrorInfo | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    values: Mapping[str, object] = field(default_factory=dict)
    tool: str = ""
    args: Mapping[str, object] = field(default_factory=dict)
    model: str = ""
    adapter: str = ""
    tokens_drafted: int = 0
    tokens_accepted: int = 0
    earlier_attempts: Usage = NO_USAGE

    @property
    def total(self) -> Usage:
        """Of all attempts."""
        return replace(Usage.sum(self.earlier_attempts, self), wall_ms=self.wall_ms)


@dataclass(frozen=True, slots=True)
class FidelityNote:
    """What is known of a level that a step's calls have, in nats a token over so many audited calls; 0 calls: nothing.

    `why` says why `auto` became this level, or why all of the workflow (`step` "") is exact; "" where it was not
    chosen. `step` is its name, of a workflow within behind the step that runs it and a /. `read` is an entry of its
    reads, where that was chosen by itself.
    """

    step: str = ""
    read: int | None = None
    level: str = "exact"
    kl: float = 0.0
    num_calls: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """One workflow and all its step instances, in the order of the step graph.

    Records in a list carry no steps.
    """

    workflow_id: str
    name: str
    state: WorkflowState
    created_at: float
    finished_at: float | None = None
    outputs: tuple[tuple[str, str], ...] = ()  # (name, text), in the order declared
    steps: tuple[StepResult, ...] = ()
    error: ErrorInfo | None = None
    last_event: int = 0  # the number of its last event
    held: str = ""  # why it is held back whole, before its first step; "" if it is not
    notes: tuple[FidelityNote, ...] = ()  # what was known of its levels when it was submitted, and what `auto` became

    @property
    def wall_ms(self) -> float:
        """From submission to the end; 0 while it runs."""
        return 0.0 if self.finished_at is None else (self.finished_at - self.created_at) * 1000.0

    @property
    def ttft_ms_sum(self) -> float:
        return sum(step.ttft_ms for step in self.steps)


@dataclass(frozen=True, slots=True)
class Event:
    """Something durable that happened. `number` counts up from 1 by one within a workflow.

    - `workflow_state`: `workflow_state`, and when it has ended `outputs` and `error`; the terminal one comes last.
      One that is held back says so in `held`, and again without when it goes on. The first has the record's `notes`.
    - `step_state`: `address`, `attempt`, `step_state`, `worker`, and of an external step `tool` and `args`; a new
      attempt voids the chunks of those before it.
    - `step_result`: `result`, whose state is terminal. Each instance gets exactly one.
    """

    number: int
    workflow_id: str
    at: float
    kind: EventKind
    workflow_state: WorkflowState | None = None
    outputs: tuple[tuple[str, str], ...] = ()
    error: ErrorInfo | None = None
    address: str = ""
    attempt: int = 0
    step_state: StepState | None = None
    worker: str = ""
    result: StepResult | None = None
    tool: str = ""
    args: Mapping[str, object] = field(default_factory=dict)
    held: str = ""
    notes: tuple[FidelityNote, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Newly generated tokens of a running attempt; `index` is the first one's index among the generated.

    In a session's decode `workflow_id` is empty and `address` is the id of the message being made.

    A chunk with `index` 0 starts the attempt's text anew: it is the first one, or, for a watch that
    resumes or has fallen behind, everything so far in one. `text` may lag behind `token_ids`.
    """

    workflow_id: str
    address: str
    attempt: int
    index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class LeaseMessage:
    """A message that a leased step reads. `key` is its name, or the address of the instance that made it."""

    key: str
    role: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Lease:
    """An external step in the hands of a handler, until `expires_at` unless it is renewed: then `duration_s` more.

    `output_schema` is a JSON schema that the output must follow; None: anything will do.
    """

    lease_id: str
    workflow_id: str
    address: str
    tool: str
    attempt: int
    args: Mapping[str, object]
    messages: tuple[LeaseMessage, ...]
    description: str
    duration_s: float
    expires_at: float
    output_schema: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class SessionPlacement:
    """An entry of a session call's view: a message, or tokens `[begin, end)` of it, and where it goes."""

    message_id: str
    position: int | None = None  # of its first placed token; None: as the layout says
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A message of a session. `text` and `token_ids` are what a decode generated, empty for a prefill.

    `overlaps` says which entries of the view, or entry and new message, share positions: allowed, and said.
    """

    session_id: str
    message_id: str
    role: str
    name: str | None
    start: int  # position of its first token
    num_tokens: int  # header and terminator included
    fidelity: str
    tokens_read: int = 0
    tokens_reused: int = 0
    tokens_loaded: int = 0
    tokens_encoded: int = 0
    tokens_generated: int = 0
    ttft_ms: float = 0.0
    wall_ms: float = 0.0
    worker: str = ""
    finish_reason: FinishReason = ""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    overlaps: tuple[str, ...] = ()
    tokens_drafted: int = 0
    tokens_accepted: int = 0


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session: it ends, and its messages with it, `ttl_s` seconds after its last use."""

    session_id: str
    ttl_s: float
    created_at: float
    expires_at: float
    messages: tuple[MessageRecord, ...] = ()
    model: str = ""


HintStatus = Literal["accepted", "clipped", "ignored"]


@dataclass(frozen=True, slots=True)
class Hint:
    """What one agent of a client that orchestrates itself will do next: `reads`, in order, as a call's view would.

    It replaces all that was said of `agent` before. `steps` is its steps-to-execution, `in_s` the seconds until then;
    None leaves one to be worked out from the other. `pin_s` asks to keep what it reads from eviction for so long.
    """

    agent: str
    reads: tuple[SessionPlacement, ...]
    layout: Layout = "packed"
    fidelity: Fidelity = "exact"
    steps: int | None = None
    in_s: float | None = None
    likelihood: float = 1.0  # that it happens at all
    pin_s: float | None = None


@dataclass(frozen=True, slots=True)
class HintOutcome:
    """What became of a hint. `accepted`: as asked. `clipped`: taken, but less than was asked. `ignored`: nothing of it
    was taken. `reason` says why, for the latter two."""

    agent: str
    status: HintStatus
    reason: str = ""
    num_reads: int = 0  # entries of `reads` that were taken
    num_tokens: int = 0  # of these
    pin_s: float = 0.0  # for how long they are pinned
    ttl_s: float = 0.0  # when it is forgotten, from now


@dataclass(frozen=True, slots=True)
class RoutingCandidate:
    """A worker that a call could have gone to: its sort key, and the estimate of its time to first token by parts."""

    worker_id: str
    key: tuple[float, ...]  # the lowest wins
    queue_ms: float = 0.0  # before the call's turn
    encode_ms: float = 0.0
    load_ms: float = 0.0  # from its own host memory and disk
    fetch_ms: float = 0.0  # from other workers
    tokens_device: int = 0  # of what the call needs, by the best tier that holds it there
    tokens_host: int = 0
    tokens_disk: int = 0
    tokens_peer: int = 0  # to be fetched
    tokens_encode: int = 0  # to be encoded: what is nowhere, or cheaper to encode than to bring, and the call's own


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Where a call went, and why. `candidates` are the best, the chosen one first, then by key."""

    call_id: str
    attempt: int  # of the call, as in StepResult
    at: float
    policy: str
    chosen: str  # a worker's id
    candidates: tuple[RoutingCandidate, ...]
    key_names: tuple[str, ...] = ()  # what each part of the key is
    num_workers: int = 0  # up at that time, of which the best are told of


@dataclass(frozen=True, slots=True)
class NextUse:
    """When a message is expected to be read next, as far as the step graph says now."""

    message: str  # its name, or the address of the instance that made it
    steps: int
    in_s: float
    likelihood: float


@dataclass(frozen=True, slots=True)
class StepExplanation:
    """Why a step's call went where it went. `uses` are of the messages that it reads; those nobody will read are left
    out."""

    workflow_id: str
    address: str
    decision: RoutingDecision
    uses: tuple[NextUse, ...] = ()


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far a worker is that takes no new calls and will leave. `done`: it is gone."""

    worker_id: str
    calls_left: int  # sent to it and not ended
    encodings_left: int  # that others will need and that are nowhere else yet
    done: bool = False


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker, as its last report had it."""

    worker_id: str
    epoch: str  # changes when the worker starts anew
    alive: bool
    device: str
    dtype: str
    attention_backend: str
    calls_running: int
    calls_waiting: int
    queued_tokens: int  # still to encode, of running and waiting calls
    pages: int
    pages_free: int
    page_size: int  # tokens
    bytes_per_token: int
    encodings: int
    draining: bool = False  # takes no new calls, and leaves once those it has have ended
    host_bytes: int = 0  # budgets of the lower tiers
    host_bytes_used: int = 0
    disk_bytes: int = 0
    disk_bytes_used: int = 0
    rates: WorkerRates = field(default_factory=WorkerRates)
    cache: CacheCounters = field(default_factory=CacheCounters)
    model: str = ""
    problem: str = ""  # of one that is lost: what its return has come to so far
    reach: Reach = field(default_factory=Reach)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model, by what workflows, sessions and requests call it, and its workers: all, and those that are up.
    `fingerprint` is that of its folder: it differs where the configuration, the tokenizer or the weights do."""

    name: str
    max_context: int  # tokens
    workers: int
    workers_up: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class DirectoryStatus:
    """How well the control plane knows what lies where. Of what calls read, `tokens_predicted` were expected to be
    encoded on the worker that they went to, and `tokens_missed` of these were not; `tokens_found` were, in any case."""

    num_shards: int = 0
    num_encodings: int = 0  # that it watches now
    num_calls: int = 0
    num_wrong: int = 0  # calls of which a token was missed
    tokens_predicted: int = 0
    tokens_missed: int = 0
    tokens_found: int = 0


JOURNAL_AVAILABLE = "available"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A Laban of those that share a journal: where others reach it, `up` or `ending`, and the workflows that it runs.
    `here` is the one that says so."""

    member_id: str
    address: str
    state: str
    workflows: int
    here: bool = False


@dataclass(frozen=True, slots=True)
class Divergence:
    """A workflow, by its name, whose audited calls differ from `exact` by more than its tolerance: nats a token, both.

    `falls_back`: what is submitted of it is exact until somebody clears that.
    """

    tenant: str
    workflow: str
    since: float
    kl: float
    num_calls: int
    tolerance: float
    falls_back: bool = False


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    version: str
    ready: bool  # at least one worker is up, of each model
    model: str  # the default one
    max_context: int  # of that one, in tokens
    workers: tuple[WorkerStatus, ...]
    workflows_running: int
    sessions_open: int
    uptime_s: float
    workflows_held: int = 0  # of those running, held back whole while memory is short
    routing_policy: str = ""
    eviction_policy: str = ""
    directory: DirectoryStatus = field(default_factory=DirectoryStatus)
    journal: str = ""  # JOURNAL_AVAILABLE, or since when not; "" if there is no journal
    members: tuple[MemberStatus, ...] = ()  # those that share it
    divergences: tuple[Divergence, ...] = ()
    models: tuple[ModelStatus, ...] = ()  # the default first
