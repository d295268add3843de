"""What crosses between the control plane and a worker: calls one way, reports the other.

Frozen dataclasses of plain values: they are pickled by Ray and know neither Ray nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from laban.actors.reach import Reach
from laban.actors.tallies import WorkerTallies
from laban.kvstore.encodings import EncodingId, EncodingSpec, View
from laban.kvstore.message_slots import MessageSlot
from laban.kvstore.placements import PlacementChange
from laban.kvstore.uses import Use

FinishReason = Literal["stop", "length", "forced", "prefill"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a decode's text must be: JSON that follows `schema` (as JSON text), or one of `choices`. One of the two.

    `grammars.py` says which can be enforced.
    """

    schema: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a decode chooses its tokens. Noise depends on (seed, token index) alone.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token. `forced` token ids are
    generated whatever the model says (for measurement), and end the call when they run out. `constraint` keeps the
    other calls to tokens with which their text can still become what it must be, and to no end before it is that.
    `num_logprobs` None gives none; 0 the chosen token's alone; n also the n most likely. Without `drafting` no tokens
    are drafted; the text is the same.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    num_logprobs: int | None = None
    constraint: Constraint | None = None
    drafting: bool = True

    @property
    def most_tokens(self) -> int:
        """How many tokens are generated at most."""
        return min(self.max_tokens, len(self.forced)) if self.forced else self.max_tokens


@dataclass(frozen=True, slots=True)
class Source:
    """Another worker that holds an encoding, in one life of it, and how long its transfer is expected to take."""

    encoding_id: EncodingId
    worker_id: str
    epoch: str
    transfer_s: float


@dataclass(frozen=True, slots=True)
class Scoring:
    """Measures a forced call, all of whose tokens are then encoded as a prompt is: its log-probabilities over the whole
    vocabulary are kept on the worker under `keep`, or compared with those kept there under `against`.

    With `release` these are forgotten after that.
    """

    keep: str = ""
    against: str = ""
    release: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a call of the same forced tokens gave, against what was kept: an item a token, in nats.

    `kl` is KL(kept || this) over the whole vocabulary, `agrees` whether both like the same token best.
    """

    kl: tuple[float, ...]
    agrees: tuple[bool, ...]
    logprobs: tuple[float, ...]  # of the forced token
    kept_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One prefill (`sampling` None: encode `tokens`) or decode (`tokens` is the header) of a message whose
    first token is at `start` under `view`.

    `specs` holds every spec needed to compute the view again, each after what it depends on. A decode is
    closed with `terminator`, however it ended; a stop token that the model itself chose is left out before it.
    `rank` is its workflow's place in the order of admission: when memory is short the lowest goes first. `sources`
    say where else encodings that the worker lacks can be fetched from. One that is `spare` is worked on only while
    nothing else is to be done, as prefetches are. Calls of one `kind` are alike, those of a step for one: what drafting
    brought in some is expected of the others. `slots` are those of its reads that may be predicted, each a whole
    message.
    """

    call_id: str
    namespace: str
    view: View
    start: int
    tokens: tuple[int, ...]
    specs: tuple[EncodingSpec, ...]
    sampling: Sampling | None = None
    terminator: tuple[int, ...] = ()
    rank: int = 0
    sources: tuple[Source, ...] = ()
    scoring: Scoring | None = None
    spare: bool = False
    kind: str = ""
    slots: tuple[MessageSlot, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The call was admitted: how much of its view it found encoded."""

    call_id: str
    tokens_read: int
    tokens_reused: int
    tokens_loaded: int = 0  # of those reused, what had to be brought: from host memory, disk or another worker
    tokens_encoded: int = 0  # before it can generate: missing encodings and its header


@dataclass(frozen=True, slots=True)
class CallTokens:
    """Newly generated tokens; `index` is the first one's index among the generated, `text` what they add.

    `text` may lag behind the tokens: bytes that do not yet make a character, or a possible stop string, are held back.
    """

    call_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallPhases:
    """What a call spent its time on at the worker: milliseconds since it came there."""

    admitted_ms: float = 0.0
    load_began_ms: float = 0.0
    load_ended_ms: float = 0.0  # 0: it waited for no load
    num_iterations: int = 0  # in which tokens of its message were computed


@dataclass(frozen=True, slots=True)
class CallFinished:
    """The message is closed and its encoding stands in the store under `encoding`."""

    call_id: str
    finish_reason: FinishReason
    encoding: EncodingSpec  # its tokens are the whole message: header, generated, terminator
    generated: tuple[int, ...]  # as kept: what a stop string cut off is gone
    text: str
    tokens_read: int
    tokens_reused: int
    tokens_encoded: int  # everything computed by prefill for this call: missing encodings, header, terminator
    ttft_ms: float  # submission to first generated token (or to the end of a prefill)
    wall_ms: float
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens_generated: int = 0  # every token sampled, kept or cut off
    tokens_loaded: int = 0  # of those reused, what had to be brought: from host memory, disk or another worker
    phases: CallPhases = field(default_factory=CallPhases)
    comparison: Comparison | None = None  # with what was kept of another call
    tokens_drafted: int = 0  # guessed from what it read, and computed along with a token that was known
    tokens_accepted: int = 0  # of these: what the model chose, too, so that no iteration of their own was needed


@dataclass(frozen=True, slots=True)
class CallFailed:
    call_id: str
    status: str  # the name of a grpc.StatusCode
    message: str


CallEvent = CallStarted | CallTokens | CallFinished | CallFailed


@dataclass(frozen=True, slots=True)
class Prefetch:
    """An encoding to have on the device before it is asked for: from a lower tier, from `sources`, or by computing it.

    `specs` holds it, last, and all that it depends on. It is given up when no `Use` of it is left.
    """

    encoding_id: EncodingId
    specs: tuple[EncodingSpec, ...]
    sources: tuple[Source, ...] = ()
    compute: bool = True  # encode it if it is nowhere to be had


@dataclass(frozen=True, slots=True)
class Advice:
    """What is to come, as far as the control plane sees. Never needed for a right result.

    `uses` replaces what was known of each encoding's next use (None: nobody will read it); others stay as they were.
    `over`: a run has read these for the last time, and nobody else is known to read them.
    `pins` keeps encodings from eviction for so many seconds while there is any other way; 0 lets go. `kv_bytes`, unless
    it is None, replaces what tenants (namespaces) may have in all tiers together.
    """

    uses: tuple[tuple[EncodingId, Use | None], ...] = ()
    prefetches: tuple[Prefetch, ...] = ()
    cancelled: tuple[EncodingId, ...] = ()  # prefetches not wanted any more
    pins: tuple[tuple[EncodingId, float], ...] = ()
    kv_bytes: tuple[tuple[str, int], ...] | None = None
    forgotten: tuple[EncodingId, ...] = ()  # to be removed from all tiers
    over: tuple[EncodingId, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    num_running: int = 0
    num_waiting: int = 0
    queued_tokens: int = 0  # still to encode, of running and waiting calls
    num_free_pages: int = 0
    num_pages: int = 0
    num_encodings: int = 0
    host_bytes_used: int = 0
    disk_bytes_used: int = 0
    num_blocked: int = 0  # of those waiting, less spare ones, those that wait for pages or a place in the batch


@dataclass(frozen=True, slots=True)
class WorkerRates:
    """How fast a worker is, measured as it goes; 0 for what it has not done yet."""

    encode_tokens_per_s: float = 0.0
    iteration_s: float = 0.0  # of one that only decodes
    host_bytes_per_s: float = 0.0  # from host memory to the device
    disk_bytes_per_s: float = 0.0  # from disk to host memory
    peer_bytes_per_s: float = 0.0  # from another worker to host memory, by whatever transport
    cma_bytes_per_s: float = 0.0  # and by each
    nixl_bytes_per_s: float = 0.0
    object_store_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What the cache did since the worker's start."""

    tokens_hit_device: int = 0  # read by calls and there when they were admitted
    tokens_loaded_host: int = 0
    tokens_loaded_disk: int = 0
    tokens_loaded_peer: int = 0
    tokens_encoded_again: int = 0  # had been here, or elsewhere, and were not to be had
    bytes_saved_host: int = 0
    bytes_saved_disk: int = 0
    num_evicted_device: int = 0
    num_evicted_host: int = 0
    num_evicted_disk: int = 0
    prefetches_useful: int = 0  # there when they were asked for
    prefetches_late: int = 0  # asked for while on their way
    prefetches_wasted: int = 0  # gone, or cancelled, without having been read
    preemptions: int = 0
    wait_load_s: float = 0.0  # that calls waited for loads alone


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one iteration did, for all calls at once. `sequence` counts up by one within an `epoch`.

    `tallies` are as of now; most reports have none: they come twice a second, and before there is nothing more to do.
    """

    worker_id: str
    epoch: str
    sequence: int
    events: tuple[CallEvent, ...] = ()
    changes: tuple[PlacementChange, ...] = ()
    load: WorkerLoad = field(default_factory=WorkerLoad)
    rates: WorkerRates = field(default_factory=WorkerRates)
    cache: CacheCounters = field(default_factory=CacheCounters)
    tallies: WorkerTallies | None = None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself once its model is loaded."""

    worker_id: str
    epoch: str
    namespace: str  # of the weights, tokenizer, RoPE and dtype; the control plane adds the tenant
    model_name: str
    max_context: int  # tokens
    num_pages: int
    page_size: int  # tokens
    bytes_per_token: int
    vocab_size: int
    attention_backend: str
    dtype: str
    device: str
    num_shards: int = 1  # processes, each with a device of its own
    host_bytes: int = 0  # budgets of the lower tiers
    disk_bytes: int = 0
    adapters: tuple[str, ...] = ()  # fingerprints of those that it computes with
    fetches: bool = False  # encodings from other workers, as a call's `sources` say
    reach: Reach = field(default_factory=Reach)  # by which transports

    @property
    def pool_tokens(self) -> int:
        return self.num_pages * self.page_size
