"""What crosses between the control plane and a worker: calls one way, reports the other.

Frozen dataclasses of plain values: they are pickled by Ray and know neither Ray nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from laban.kvstore.encodings import EncodingId, EncodingSpec, View

FinishReason = Literal["stop", "length", "forced", "prefill"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a decode chooses its tokens. Noise depends on (seed, token index) alone.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token. `forced` token ids are
    generated whatever the model says (for measurement), and end the call when they run out.
    `num_logprobs` None gives none; 0 the chosen token's alone; n also the n most likely.
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

    @property
    def most_tokens(self) -> int:
        """How many tokens are generated at most."""
        return min(self.max_tokens, len(self.forced)) if self.forced else self.max_tokens


@dataclass(frozen=True, slots=True)
class Call:
    """One prefill (`sampling` None: encode `tokens`) or decode (`tokens` is the header) of a message whose
    first token is at `start` under `view`.

    `specs` holds every spec needed to compute the view again, each after what it depends on. A decode is
    closed with `terminator`, however it ended; a stop token that the model itself chose is left out before it.
    """

    call_id: str
    namespace: str
    view: View
    start: int
    tokens: tuple[int, ...]
    specs: tuple[EncodingSpec, ...]
    sampling: Sampling | None = None
    terminator: tuple[int, ...] = ()


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


@dataclass(frozen=True, slots=True)
class CallFailed:
    call_id: str
    status: str  # the name of a grpc.StatusCode
    message: str


CallEvent = CallStarted | CallTokens | CallFinished | CallFailed


@dataclass(frozen=True, slots=True)
class StoreDelta:
    added: tuple[tuple[EncodingId, int], ...] = ()  # (id, num_tokens)
    removed: tuple[EncodingId, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    num_running: int = 0
    num_waiting: int = 0
    queued_tokens: int = 0  # still to encode, of running and waiting calls
    num_free_pages: int = 0
    num_pages: int = 0
    num_encodings: int = 0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one iteration did, for all calls at once. `sequence` counts up by one within an `epoch`."""

    worker_id: str
    epoch: str
    sequence: int
    events: tuple[CallEvent, ...] = ()
    delta: StoreDelta = field(default_factory=StoreDelta)
    load: WorkerLoad = field(default_factory=WorkerLoad)


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

    @property
    def pool_tokens(self) -> int:
        return self.num_pages * self.page_size
