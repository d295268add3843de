"""The one configuration: defaults < laban.yaml < environment LABAN_* < flags, resolved once and never changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from laban.actors.engine.config import EngineConfig
from laban.actors.errors import InvalidInput, NotFound
from laban.actors.logs import Level, LogSettings
from laban.cluster.http.section import HttpSection
from laban.cluster.sizes import MAX_BYTES, Bytes, BytesPerSecond
from laban.cluster.tls import ServerTls

FILE_NAME = "laban.yaml"
# Read by the command line itself: no fields of the configuration.
OTHER_VARIABLES = (
    "LABAN_CONFIG", "LABAN_ADDRESS", "LABAN_DEBUG", "LABAN_TOKEN", "LABAN_TLS", "LABAN_TLS_CA", "LABAN_TLS_CERT",
    "LABAN_TLS_KEY",
)  # fmt: skip
PASSWORD = re.compile(r"(?<=://)([^:/@]*:).*(?=@)")
"""Of a URL; what stands before it is its group."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSection(_Section):
    """The engine inside each worker."""

    pool_tokens: int | None = Field(default=None, gt=0, description="tokens the pool holds; null: as memory allows")
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
    cuda_graphs: bool = Field(default=True, description="capture a GPU's forwards of up to 1280 new tokens at start")


class CacheSection(_Section):
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
    disk_bytes: Bytes = Field(default=16 << 30, gt=0, le=MAX_BYTES, description="of that folder, for each worker")
    eviction: str = Field(
        default="cost", min_length=1, description="cost, steps, lru, or one of your own as package.module:Class"
    )
    tenant_share: float = Field(default=1.0, gt=0, le=1, description="of each tier, for one tenant's encodings at most")
    link_bytes_per_s: BytesPerSecond | None = Field(
        default=None, gt=0, description="limit of copies between host and device; null: as fast as it goes"
    )


class RoutingSection(_Section):
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


class ServerSection(_Section):
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
    drain_s: float = Field(
        default=10.0, ge=0, le=3600, description="that running calls have to end when the server does, with a journal"
    )

    @model_validator(mode="after")
    def _whole(self) -> ServerSection:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("one of tls_cert and tls_key is missing, expected both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca without tls_cert and tls_key, expected all three")
        return self

    @property
    def tls(self) -> ServerTls | None:
        if self.tls_cert is None or self.tls_key is None:
            return None
        return ServerTls(self.tls_cert, self.tls_key, self.tls_client_ca)


class AuthSection(_Section):
    """Who may call."""

    tokens_file: str | None = Field(
        default=None, min_length=1, description="who may call, as `laban token` writes it; null: everybody may"
    )


class MetricsSection(_Section):
    """Metrics and health, over plain HTTP."""

    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int | None = Field(
        default=9464,
        ge=0,
        le=65_535,
        description="of /metrics, /healthz, /readyz; 0: a free one; null: none; unless it is set, a free one if taken",
    )


class TracingSection(_Section):
    """OpenTelemetry traces, over OTLP's gRPC; the standard OTEL_ variables say the rest."""

    endpoint: str | None = Field(default=None, pattern="^https?://[^/]", description="null: as OTEL_ variables say")


class JournalSection(_Section):
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


class LogSection(_Section):
    """What every process logs, to its stderr. No text of a message is ever logged."""

    format: Literal["text", "json"] = Field(default="text", description="text, or json: an object a line")
    level: Level = Field(default="info", description="debug, info, warning, error; debug has every step")

    @property
    def settings(self) -> LogSettings:
        return LogSettings(self.format, self.level)


class LimitsSection(_Section):
    """How much is kept and allowed."""

    max_active_workflows: int = Field(default=256, gt=0, description="running at once; more are refused")
    max_finished_workflows: int = Field(default=1000, gt=0, description="kept after their end; the oldest goes first")
    max_attempts: int = Field(default=3, gt=0, description="of one call, while workers die under it")
    session_ttl_s: float = Field(
        default=600.0, gt=0, description="a session unused for so long ends, unless it says otherwise"
    )
    max_sessions: int = Field(default=1024, gt=0, description="open at once")


class RaySection(_Section):
    """The Ray cluster underneath."""

    address: str | None = Field(default=None, description="of a running Ray; null starts one on this machine")
    num_cpus: int | None = Field(default=None, gt=0, description="CPUs that a Ray started here may use; null: all")


class LabanConfig(_Section):
    """All of it. `model` null is the default model."""

    model: str | None = Field(default=None, description="folder of the model; null: SmolLM2-135M-Instruct")
    workers: int = Field(default=1, gt=0, le=1024, description="model replicas")
    engine: EngineSection = Field(default=EngineSection(), description="the engine inside each worker")
    cache: CacheSection = Field(
        default=CacheSection(), description="the KV cache of each worker below its device, and what goes first"
    )
    routing: RoutingSection = Field(
        default=RoutingSection(), description="where calls go, and what is brought there before they come"
    )
    server: ServerSection = Field(default=ServerSection(), description="the gRPC gateway")
    http: HttpSection = Field(default=HttpSection(), description="OpenAI's API, over HTTP")
    auth: AuthSection = Field(default=AuthSection(), description="who may call")
    metrics: MetricsSection = Field(default=MetricsSection(), description="metrics and health, over plain HTTP")
    tracing: TracingSection = Field(default=TracingSection(), description="traces, over OTLP")
    journal: JournalSection = Field(default=JournalSection(), description="what outlives the process")
    log: LogSection = Field(default=LogSection(), description="what every process logs, to its stderr")
    limits: LimitsSection = Field(default=LimitsSection(), description="how much is kept and allowed")
    ray: RaySection = Field(default=RaySection(), description="the Ray cluster underneath")

    def engine_config(self) -> EngineConfig:
        """The engine's own, with the cores of this machine shared out among the workers and their shards."""
        values = self.engine.model_dump(exclude={"shards"}) | self.cache.model_dump() | {"num_workers": self.workers}
        if values["num_threads"] is None:
            values["num_threads"] = max(1, _num_cores() // (self.workers * self.engine.shards))
        return EngineConfig(**values)


@dataclass(frozen=True)
class Resolved:
    """A configuration, and for each field that is not a default what set it."""

    config: LabanConfig
    sources: Mapping[str, str]
    file: Path | None


def resolve(
    file: str | Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: str | Path = ".",
) -> Resolved:
    """The configuration from `file` (else LABAN_CONFIG, else laban.yaml in `folder` if there is one), the
    environment and `flags` (by field path, e.g. "server.port"; None values are ignored).

    Raises NotFound for a missing file, InvalidInput naming the field, its source, the value and what is expected.
    """
    variables = os.environ if environment is None else environment
    path = _find_file(file, variables, Path(folder))
    settings: dict[str, object] = {}
    sources: dict[str, str] = {}
    layers: list[tuple[Iterator[tuple[str, object]], str]] = [
        (_from_file(path), str(path)),
        (_from_environment(variables), "the environment"),
        (((key, value) for key, value in (flags or {}).items() if value is not None), "the command line"),
    ]
    for layer, source in layers:
        for key, value in layer:
            settings[key] = value
            sources[key] = source
    try:
        config = LabanConfig.model_validate(_nested(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(
            f"{_sentence(first)}, in {sources.get(key, 'the configuration')}", field=key, value=first["input"]
        ) from None
    return Resolved(config, sources, path)


def describe(resolved: Resolved) -> str:
    """The configuration as a laban.yaml, each field with its meaning and what set it."""
    lines = ["# Laban's configuration, as resolved: defaults < laban.yaml < LABAN_* variables < flags."]
    for key, field, value in fields(resolved.config):
        depth = key.count(".")
        name = key.rpartition(".")[2]
        if isinstance(value, BaseModel):
            lines += ["", f"# {field.description}", f"{name}:"]
            continue
        if key == "journal.url" and isinstance(value, str):
            value = PASSWORD.sub(r"\1***", value)
        shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).split("\n")[0]
        source = f" (set by {resolved.sources[key]})" if key in resolved.sources else ""
        lines.append(f"{'  ' * depth}{name}: {shown}  # {field.description}{source}")
    return "\n".join(lines) + "\n"


def fields(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, object]]:
    """Every field's path, description and value; a section comes before its fields."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield prefix + name, field, value
        if isinstance(value, BaseModel):
            yield from fields(value, f"{prefix}{name}.")


def variable_of(key: str) -> str:
    """
    >>> variable_of("engine.pool_tokens")
    'LABAN_ENGINE_POOL_TOKENS'
    """
    return "LABAN_" + key.replace(".", "_").upper()


def _find_file(file: str | Path | None, variables: Mapping[str, str], folder: Path) -> Path | None:
    named = file or variables.get("LABAN_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise NotFound("the configuration file does not exist", field="config", value=str(path))
        return path
    found = folder / FILE_NAME
    return found if found.is_file() else None


def _from_file(path: Path | None) -> Iterator[tuple[str, object]]:
    if path is None:
        return
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid YAML: {' '.join(str(error).split())}", field="config") from None
    if data is None:
        return
    if not isinstance(data, dict):
        raise InvalidInput(f"{path} holds a {type(data).__name__}, expected fields", field="config")
    sections = _sections()
    for key, value in data.items():
        if key in sections and isinstance(value, dict):
            for name, inner in value.items():
                yield _known(f"{key}.{name}", str(path)), inner
        elif key in sections and value is not None:
            raise InvalidInput(f"expected fields below it, in {path}", field=str(key), value=value)
        elif key not in sections:
            yield _known(str(key), str(path)), value


def _from_environment(variables: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    known = {variable_of(key): key for key in _keys()}
    for name, text in sorted(variables.items()):
        if not name.startswith("LABAN_") or name in OTHER_VARIABLES:
            continue
        if name not in known:
            near = get_close_matches(name, [*known, *OTHER_VARIABLES], n=1)
            hint = f"did you mean {near[0]}?" if near else "`laban config` lists them"
            raise InvalidInput(f"no such setting; {hint}", field=name, value=text)
        yield known[name], None if text in ("", "null") else text  # "" too, since a variable is easily left empty


def _keys() -> list[str]:
    return [key for key, _, value in fields(LabanConfig()) if not isinstance(value, BaseModel)]


def _sections() -> set[str]:
    return {key for key, _, value in fields(LabanConfig()) if isinstance(value, BaseModel)}


def _known(key: str, source: str) -> str:
    known = _keys()
    if key in known:
        return key
    near = get_close_matches(key, [*known, *_sections()], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `laban config` lists them"
    raise InvalidInput(f"no such setting, in {source}{hint}", field=key)


def _nested(settings: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
