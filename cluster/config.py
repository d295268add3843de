"""The one configuration: defaults < laban.yaml < environment LABAN_* < flags, resolved once and never changed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from laban.actors.engine.config import EngineConfig
from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.config_grants import ALL, MAX_GRANTS, GrantedMessage, GrantName, GrantSection
from laban.cluster.config_models import (
    MAX_ADAPTERS,
    MAX_MODELS,
    AdapterName,
    AdapterSection,
    ModelName,
    ModelPlan,
    ModelSection,
)
from laban.cluster.config_sections import (
    EVERYWHERE,
    AuditSection,
    AuthSection,
    CacheSection,
    EngineSection,
    JournalSection,
    LimitsSection,
    LogSection,
    MetricsSection,
    RaySection,
    RoutingSection,
    Section,
    ServerSection,
    TracingSection,
)
from laban.cluster.http.section import HttpSection
from laban.cluster.strict_yaml import KeyTwice, load_yaml

__all__ = [
    "AuditSection",
    "AuthSection",
    "CacheSection",
    "EngineSection",
    "JournalSection",
    "LabanConfig",
    "LimitsSection",
    "LogSection",
    "MetricsSection",
    "ModelSection",
    "RaySection",
    "Resolved",
    "RoutingSection",
    "ServerSection",
    "TracingSection",
    "describe",
    "fields",
    "resolve",
    "variable_of",
]

FILE_NAME = "laban.yaml"
# Read by the command line itself: no fields of the configuration.
OTHER_VARIABLES = (
    "LABAN_CONFIG", "LABAN_ADDRESS", "LABAN_DEBUG", "LABAN_TOKEN", "LABAN_TLS", "LABAN_TLS_CA", "LABAN_TLS_CERT",
    "LABAN_TLS_KEY",
)  # fmt: skip
ENTRIES: Mapping[object, tuple[str, type[BaseModel]]] = {
    "models": ("a model", ModelSection),
    "adapters": ("an adapter", AdapterSection),
    "grants": ("a grant", GrantSection),
    "messages": ("a granted message", GrantedMessage),
}
"""What may stand in the settings that are mappings."""
PASSWORD = re.compile(r"(?<=://)([^:/@]*:).*(?=@)")
"""Of a URL; what stands before it is its group."""


class LabanConfig(Section):
    """All of it. `model` null is the default model."""

    model: str | None = Field(default=None, description="folder of the model; null: SmolLM2-135M-Instruct")
    workers: int = Field(default=1, gt=0, le=1024, description="model replicas")
    models: Mapping[ModelName, ModelSection] = Field(
        default={},
        max_length=MAX_MODELS,
        description="several models in the place of `model`: name -> path, workers, shards, dtype, device_memory, "
        "host_memory, disk, resource",
    )
    default_model: str | None = Field(
        default=None, description="of `models`, that of whoever names none; null: the first"
    )
    adapters: Mapping[AdapterName, AdapterSection] = Field(
        default={},
        max_length=MAX_ADAPTERS,
        description="low-rank adapters (LoRA): name -> path, model; a bare text is the path",
    )
    grants: Mapping[GrantName, GrantSection] = Field(
        default={},
        max_length=MAX_GRANTS,
        description="messages whose encodings tenants share: name -> messages, tenants, model, adapters",
    )
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
    audit: AuditSection = Field(default=AuditSection(), description="audits in service")
    limits: LimitsSection = Field(default=LimitsSection(), description="how much is kept and allowed")
    ray: RaySection = Field(default=RaySection(), description="the Ray cluster underneath")

    @field_validator("models", "adapters", "grants", mode="before")
    @classmethod
    def _spelled_out(cls, value: object, field: ValidationInfo) -> object:
        """A variable of the environment, or a flag, has it as YAML."""
        if isinstance(value, str):
            try:
                value = load_yaml(value)
            except yaml.YAMLError as error:
                raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
        if isinstance(value, dict):
            value = {name: {} if section is None else section for name, section in value.items()}
            if field.field_name == "adapters":
                return {name: {"path": each} if isinstance(each, str) else each for name, each in value.items()}
            return value
        return {} if value is None else value

    @model_validator(mode="after")
    def _one_form(self) -> LabanConfig:
        if self.models and self.model is not None:
            raise ValueError("`model` and `models` are both set, expected one of them")
        if self.default_model is not None and self.default_model not in self.models:
            known = f"one of {', '.join(self.models)}" if self.models else "`models` first"
            raise ValueError(f"default_model is {self.default_model!r}, expected {known}")
        self._check_ports()
        if not self.models and self.cache.disk_folder is not None and self.cache.host_bytes == 0:
            why = "encodings come from disk through host memory, expected more than 0 or no disk_folder"
            raise ValueError(f"cache.host_bytes is 0 and cache.disk_folder is set: {why}")
        if self.models and self.engine.pool_tokens is not None and any(m.device_memory for m in self.models.values()):
            raise ValueError("engine.pool_tokens and a model's device_memory are both set, expected one of them")
        for name, adapter in self.adapters.items():
            if adapter.model is not None and adapter.model not in self.models:
                known = f"one of {', '.join(self.models)}" if self.models else "none where `models` are not set"
                raise ValueError(f"adapters.{name}.model is {adapter.model!r}, expected {known}")
        for name, grant in self.grants.items():
            if grant.model is not None and grant.model not in self.models:
                known = f"one of {', '.join(self.models)}" if self.models else "none where `models` are not set"
                raise ValueError(f"grants.{name}.model is {grant.model!r}, expected {known}")
            of_model = dict(self._adapters_of(grant.model or (self._default_model() if self.models else None)))
            for adapter_name in grant.adapters:
                if adapter_name not in of_model:
                    known = f"one of {', '.join(of_model)}" if of_model else "none: the model has no adapters"
                    raise ValueError(f"grants.{name}.adapters has {adapter_name!r}, expected {known}")
            if grant.tenants != ALL and self.auth.tokens_file is None:
                raise ValueError(f"grants.{name}.tenants names tenants, which there are only with auth.tokens_file")
        return self

    def _check_ports(self) -> None:
        """Ports that were asked for; others give way."""
        listeners: list[tuple[str, ServerSection | HttpSection | MetricsSection]] = [("server", self.server)]
        for name, section in (("http", self.http), ("metrics", self.metrics)):
            if not section.port or "port" not in section.model_fields_set:
                continue
            for other_name, other in listeners:
                hosts = {section.host, other.host}
                if section.port == other.port and (len(hosts) == 1 or hosts & EVERYWHERE):
                    why = f"{other_name}.port and {name}.port are both {section.port}"
                    raise ValueError(f"{why}, expected a port of its own for each")
            listeners.append((name, section))

    def _default_model(self) -> str:
        """Of `models`."""
        return self.default_model or next(iter(self.models))

    def _adapters_of(self, model: str | None) -> tuple[tuple[str, str], ...]:
        """Names and folders of those for a model; None is the default one."""
        default = None if model is None else self._default_model()
        return tuple(
            (name, str(Path(each.path).expanduser()))
            for name, each in self.adapters.items()
            if each.model == model or (each.model is None and model == default)
        )

    def model_plans(self) -> tuple[ModelPlan, ...]:
        """What is to be served, the default first, with the cores of this machine shared out among all processes."""
        if not self.models:
            adapters = self._adapters_of(None)
            engine = replace(self.engine_config(), adapters=tuple(path for _, path in adapters))
            return (ModelPlan(None, self.model, self.workers, self.engine.shards, engine, adapters=adapters),)
        default = self._default_model()
        named = {default: self.models[default], **self.models}
        sizes = {n: (m.workers or self.workers, m.shards or self.engine.shards) for n, m in named.items()}
        num_workers = sum(workers for workers, _ in sizes.values())
        common = self._engine_config(num_workers, sum(workers * shards for workers, shards in sizes.values()))
        plans = []
        for name, section in named.items():
            engine = replace(common, dtype=section.dtype or common.dtype)
            if section.device_memory is not None and section.device_memory > 1:
                engine = replace(engine, pool_bytes=int(section.device_memory))
            if section.host_memory is not None and section.host_memory > 1:
                engine = replace(engine, host_bytes=int(section.host_memory))
            if section.disk is not None:
                disk = section.disk if section.disk > 1 else section.disk * common.disk_bytes
                engine = replace(engine, disk_bytes=int(disk))
            adapters = self._adapters_of(name)
            engine = replace(engine, adapters=tuple(path for _, path in adapters))
            memory = section.device_memory, section.host_memory
            plans.append(ModelPlan(name, section.path, *sizes[name], engine, *memory, adapters, section.resource))
        return tuple(plans)

    def engine_config(self) -> EngineConfig:
        """The engine's own of the one model, with the cores of this machine shared out among the workers and their
        shards."""
        return self._engine_config(self.workers, self.workers * self.engine.shards)

    def _engine_config(self, num_workers: int, num_processes: int) -> EngineConfig:
        values = (
            self.engine.model_dump(exclude={"shards", "parse_special_tokens"})
            | self.cache.model_dump()
            | {"num_workers": num_workers}
        )
        if values["num_threads"] is None:
            values["num_threads"] = max(1, _num_cores() // num_processes)
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
        first = min(error.errors(), key=lambda each: each["type"] == "missing")  # a name misspelled says why one is
        loc = [str(part) for part in first["loc"] if part != "[key]"]
        key, where = ".".join(loc), sources.get(".".join(loc), "the configuration")
        if loc[:1] in (["models"], ["adapters"], ["grants"]):
            where = sources[loc[0]]
        given = None if isinstance(first["input"], BaseModel | dict) else first["input"]
        raise InvalidInput(f"{_sentence(first)}, in {where}", field=key, value=given) from None
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
        if key in ("models", "adapters", "grants") and isinstance(value, Mapping):
            value = {name: section.model_dump(mode="json", exclude_none=True) for name, section in value.items()}
        style = '"' if key == "grants" else None  # texts of several lines, on one
        shown = yaml.safe_dump(
            value, default_flow_style=True, default_style=style, sort_keys=False, allow_unicode=True, width=sys.maxsize
        ).split("\n")[0]
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
            what = "the configuration file is a folder" if path.is_dir() else "the configuration file does not exist"
            raise NotFound(what, field="config", value=str(path))
        return path
    found = folder / FILE_NAME
    return found if found.is_file() else None


def _from_file(path: Path | None) -> Iterator[tuple[str, object]]:
    if path is None:
        return
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot be read ({error.strerror})", field="config", value=str(path)) from None
    except KeyTwice as error:
        raise InvalidInput(f"{path}, {error.problem}", field="config") from None
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
    if error["type"] == "extra_forbidden":
        section_of = error["loc"][0]
        what, section = ENTRIES["messages" if section_of == "grants" and "messages" in error["loc"] else section_of]
        near = get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        return f"no such setting; did you mean {near[0]}?" if near else f"no such setting of {what}"
    if error["type"] == "string_pattern_mismatch" and error["loc"][0] == "grants":
        return "not a grant's name, expected letters, digits and . _ - after one of the first two"
    if error["type"] == "string_pattern_mismatch" and error["loc"][0] == "adapters":
        return "not an adapter's name, expected letters, digits, _ and -, no digit or - first"
    if error["type"] == "string_pattern_mismatch" and error["loc"][0] == "models":
        return "not a model's name, expected letters, digits and . _ : / - after one of the first two"
    return (message[0].lower() + message[1:]).replace("tuple", "list").replace(" after validation, not 0", ", not none")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
