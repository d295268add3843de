"""The sections of the configuration: each field with its default, its bounds and what it means."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from laban.actors.logs import Level, LogSettings
from laban.cluster.sizes import MAX_BYTES, Bytes, BytesPerSecond
from laban.cluster.tls import PeerTls, ServerTls

EVERYWHERE = frozenset(("0.0.0.0", "::", ""))
"""Hosts that mean all addresses of the machine."""
NUMBERS = (int, float, int | None, float | None)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        """`workers: true` would be one worker."""
        is_number = cls.model_fields[info.field_name or ""].annotation in NUMBERS
        if is_number and isinstance(value, bool):
            raise ValueError("expected a number")
        return value


class EngineSection(Section):
    """The engine inside each worker."""

    pool_tokens: int | None = Field(default=None, gt=0, description="tokens the pool holds; null: as memory allows")
    pool_bytes: Bytes | None = Field(
        default=None, gt=0, le=MAX_BYTES, description="bytes of the pool, such as 2GiB, unless pool_tokens is set"
    )
    page_size: int = Field(default=16, gt=0, le=1024, description="tokens a page")
    max_batch_tokens: int | None = Field(
        default=None,
        gt=0,
        description="new tokens an iteration; longer prefills go in chunks; null: 512 on a CPU, 8192 on a GPU",
    )
    max_running: int = Field(default=64, gt=0, description="calls in the batch at once")
    max_waiting: int = Field(default=10_000, gt=0, description="calls queued in a worker; one more is refused")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of weights, keys and values; auto: float32 on a CPU, the model's 16 bits on a GPU"
    )
    shards: int = Field(
        default=1, gt=0, le=64, description="a worker's GPUs, or processes: each has a slice of the model"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one")
    num_threads: int | None = Field(
        default=None, gt=0, description="CPU threads a shard; null: cores divided by workers and shards"
    )
    memory_share: float = Field(
        default=0.9, gt=0, le=1, description="of a GPU's memory, for weights, a forward and the pool"
    )
    attention: Literal[
        "auto", "flash-attention-3", "flash-attention-2", "torch-varlen", "cudnn", "torch-cuda-flash", "reference"
    ] = Field(default="auto", description="of large prefills on a GPU; auto takes the best that works there")
    drafting: bool = Field(
        default=True, description="guess a call's next tokens from what it reads, where that is measured to pay"
    )
    draft_tokens: int = Field(default=15, gt=0, le=64, description="guessed for a call in one iteration, at most")
    cuda_graphs: bool = Field(default=True, description="capture a GPU's forwards of up to 1280 new tokens at start")
    parse_special_tokens: bool = Field(
        default=True,
        description="special tokens spelled out in texts are those tokens, as in transformers; false: they stay text",
    )


class CacheSection(Section):
    """The KV cache of each worker below its device, and what goes first."""

    host_bytes: Bytes | None = Field(
        default=None,
        ge=0,
        le=MAX_BYTES,
        description="host memory a worker, such as 4GiB; null: 256 MiB on a CPU, with a GPU its part of a quarter",
    )
    disk_folder: str | None = Field(
        default=None,
        min_length=1,
        description="where workers keep encodings on disk, each in a folder of its own there; null: nowhere",
    )
    disk_bytes: Bytes = Field(
        default=16 << 30, gt=0, le=MAX_BYTES, description="of that folder, for each worker, its shards together"
    )
    eviction: str = Field(
        default="cost", min_length=1, description="cost, steps, lru, or one of your own as package.module:Class"
    )
    tenant_share: float = Field(default=1.0, gt=0, le=1, description="of each tier, for one tenant's encodings at most")
    transport: Literal["auto", "cma", "nixl", "object_store"] = Field(
        default="auto",
        description="how encodings cross between workers: cma reads another process of the machine, nixl another "
        "machine (RDMA, TCP), object_store sends through Ray; auto: the first of these that serves. Workers of several "
        "shards always send, and take auto or object_store alone",
    )
    link_bytes_per_s: BytesPerSecond | None = Field(
        default=None, gt=0, description="limit of copies between host and device; null: as fast as it goes"
    )


class RoutingSection(Section):
    """Where calls go, and what is brought there before they come."""

    policy: str = Field(
        default="cost",
        min_length=1,
        description="cost, prefix_affinity, least_loaded, round_robin, or one of your own as package.module:Class",
    )
    prefetch: bool = Field(default=True, description="bring or encode what the next steps will read")
    admission: bool = Field(default=True, description="hold whole workflows back while memory is short")
    replicate: bool = Field(default=True, description="copy messages that many calls read to other workers")
    directory_shards: int = Field(default=1, gt=0, le=256, description="processes that keep the directory")
    record: str | None = Field(
        default=None, min_length=1, description="file that every call is recorded to, as JSON lines"
    )


class ServerSection(Section):
    """The gRPC gateway."""

    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int = Field(default=8470, ge=0, le=65_535, description="0 takes a free port")
    max_message_bytes: int = Field(default=16 << 20, gt=0, description="of one request; larger ones are refused")
    max_concurrent_calls: int = Field(default=1024, gt=0, description="gRPC calls at once, streams included")
    max_connection_age_s: float | None = Field(
        default=None,
        gt=0,
        description="after which clients connect anew, so that gateways share them; streams have as long again; "
        "null: never",
    )
    tls_cert: str | None = Field(default=None, min_length=1, description="PEM certificate; null: no TLS")
    tls_key: str | None = Field(default=None, min_length=1, description="its PEM key")
    tls_client_ca: str | None = Field(
        default=None, min_length=1, description="PEM authorities that clients need a certificate of; null: none needed"
    )
    peer_address: str | None = Field(
        default=None,
        min_length=1,
        description="host or host:port where other Labans of the same journal reach this one; null: host, or the "
        "machine's name",
    )
    peer_ca: str | None = Field(
        default=None, min_length=1, description="PEM authorities of the others' certificates; null: the system's"
    )
    peer_name: str | None = Field(
        default=None, min_length=1, description="that the others' certificates are for; null: the host of each"
    )
    peer_cert: str | None = Field(
        default=None,
        min_length=1,
        description="PEM certificate that this one shows the others, where clients need one; null: tls_cert",
    )
    peer_key: str | None = Field(default=None, min_length=1, description="its PEM key; null: tls_key")
    drain_s: float = Field(
        default=10.0, ge=0, le=3600, description="that running calls have to end when the server does, with a journal"
    )

    @model_validator(mode="after")
    def _whole(self) -> ServerSection:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("one of tls_cert and tls_key is missing, expected both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca without tls_cert and tls_key, expected all three")
        if (self.peer_cert is None) != (self.peer_key is None):
            raise ValueError("one of peer_cert and peer_key is missing, expected both or neither")
        for name in ("peer_ca", "peer_name", "peer_cert"):
            if getattr(self, name) is not None and self.tls_cert is None:
                raise ValueError(f"{name} without tls_cert and tls_key: others are reached without TLS")
        return self

    @property
    def tls(self) -> ServerTls | None:
        if self.tls_cert is None or self.tls_key is None:
            return None
        return ServerTls(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def peer_tls(self) -> PeerTls | None:
        """Towards others, who serve as this one does: its own certificate, where they ask for one."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        pair = (self.peer_cert, self.peer_key)
        if self.peer_cert is None and self.tls_client_ca is not None:
            pair = (self.tls_cert, self.tls_key)
        return PeerTls(self.peer_ca, *pair, self.peer_name)


class AuthSection(Section):
    """Who may call."""

    tokens_file: str | None = Field(
        default=None, min_length=1, description="who may call, as `laban token` writes it; null: everybody may"
    )


class MetricsSection(Section):
    """Metrics and health, over plain HTTP."""

    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int | None = Field(
        default=9464,
        ge=0,
        le=65_535,
        description="of /metrics, /healthz, /readyz; 0: a free one; null: none; unless it is set, a free one if taken",
    )


class TracingSection(Section):
    """OpenTelemetry traces, over OTLP's gRPC; the standard OTEL_ variables say the rest."""

    endpoint: str | None = Field(default=None, pattern="^https?://[^/]", description="null: as OTEL_ variables say")


class JournalSection(Section):
    """What outlives the process."""

    url: str | None = Field(
        default=None,
        min_length=1,
        description="database: sqlite:////folder/file.db or postgresql://user@host/laban; none: workflows end with the "
        "process; null: a file of this user's, by the port",
    )
    sync: Literal["full", "normal"] = Field(
        default="full", description="full: a write is on the disk; normal: lost with the machine, not the process"
    )
    lease_s: float = Field(
        default=10.0, gt=0, le=3600, description="after which others take the workflows of a silent Laban over"
    )
    max_age_s: float | None = Field(
        default=None, gt=0, description="of workflows that have ended; null: as limits.max_finished_workflows says"
    )


class LogSection(Section):
    """What every process logs, to its stderr. No text of a message is ever logged."""

    format: Literal["text", "json"] = Field(default="text", description="text, or json: an object a line")
    level: Level = Field(default="info", description="debug, info, warning, error; debug has every step")

    @property
    def settings(self) -> LogSettings:
        return LogSettings(self.format, self.level)


class LimitsSection(Section):
    """How much is kept and allowed."""

    max_active_workflows: int = Field(default=256, gt=0, description="running at once; more are refused")
    max_finished_workflows: int = Field(default=1000, gt=0, description="kept after their end; the oldest goes first")
    max_attempts: int = Field(default=3, gt=0, description="of one call, while workers die under it")
    session_ttl_s: float = Field(
        default=600.0, gt=0, description="a session unused for so long ends, unless it says otherwise"
    )
    max_sessions: int = Field(default=1024, gt=0, description="open at once")
    start_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="for workers to load their models, at the start, when one is added and when one comes back",
    )


class AuditSection(Section):
    """Audits in service: calls that are not exact, run again under `exact` while their worker is idle."""

    share: float = Field(default=0.0, ge=0, le=1, description="of the calls that are not exact; 0: none")
    budget: float = Field(default=0.02, gt=0, le=1, description="share of a worker's time that audits may take")
    tolerance: float = Field(
        default=0.05, ge=0, le=100, description="mean KL, nats a token, of workflows that state none"
    )
    fallback: bool = Field(default=False, description="workflows that leave their tolerance are exact from then on")


class RaySection(Section):
    """The Ray cluster underneath."""

    address: str | None = Field(default=None, description="of a running Ray; null starts one on this machine")
    num_cpus: int | None = Field(default=None, gt=0, description="CPUs that a Ray started here may use; null: all")
