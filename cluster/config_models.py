"""Several models in one cluster: what the configuration says of each, and the memory that its workers have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from laban.actors.engine.config import CPU_HOST_BYTES, CPU_POOL_BYTES, EngineConfig
from laban.actors.errors import InvalidInput
from laban.cluster.config_sections import Section
from laban.cluster.sizes import MAX_BYTES, parse_size, shown_bytes
from laban.cluster.workflow.models import NONE

MAX_MODELS = 32
MAX_ADAPTERS = 64
MOST_ON_A_GPU = 64  # workers that are not told how much they may have
NEARLY = 1e-6  # parts of a GPU are sums of fractions


def parse_budget(value: object) -> object:
    """A share, as a number up to 1 or in percent, or bytes. ValueError for other text.

    >>> parse_budget("40%"), parse_budget("0.4"), parse_budget("2GiB")
    (0.4, 0.4, 2147483648)
    """
    if not isinstance(value, str):
        return parse_size(value)
    text = value.strip()
    try:
        found = float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        try:
            return parse_size(value)
        except ValueError:
            raise ValueError("expected bytes, such as 2GiB, or a share, such as 40%") from None
    if text.endswith("%") and found > 1:  # which would be bytes
        raise ValueError("expected at most 100%")
    return found


Budget = Annotated[float, Field(gt=0, le=MAX_BYTES, allow_inf_nan=False), BeforeValidator(parse_budget)]
"""Up to 1 a share of what there is, else bytes."""


def _adapter_name(name: str) -> str:
    if name == NONE:
        raise ValueError(f"not an adapter's name: {NONE} asks for the plain model")
    return name


AdapterName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"), AfterValidator(_adapter_name)
]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]


class ModelSection(Section):
    """One of several models. What it leaves out is as the configuration says for all."""

    path: str | None = Field(default=None, min_length=1, description="folder; null: SmolLM2-135M-Instruct")
    workers: int | None = Field(default=None, gt=0, le=1024, description="model replicas")
    shards: int | None = Field(default=None, gt=0, le=64, description="a worker's GPUs, or processes")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of weights, keys and values"
    )
    device_memory: Budget | None = Field(
        default=None,
        description="of each worker: a share of its GPU, such as 40%; or bytes for keys and values, such as 2GiB",
    )
    host_memory: Budget | None = Field(
        default=None, description="of each worker, below its device: bytes, or a share of the machine's memory"
    )
    disk: Budget | None = Field(
        default=None, description="of each worker, of cache.disk_folder: bytes, or a share of cache.disk_bytes"
    )
    resource: str | None = Field(
        default=None,
        min_length=1,
        description="of Ray's nodes, by name: workers run on those that have it; null: on any",
    )


class AdapterSection(BaseModel):
    """A low-rank adapter that agents and steps may name. A bare text is its `path`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="folder in PEFT's format")
    model: str | None = Field(default=None, description="of `models`, the one that it is for; null: the default")


@dataclass(frozen=True)
class ModelPlan:
    """One model to be served; `name` None is called by its folder. In `engine` shares of memory are still open: they
    depend on the machine."""

    name: str | None
    path: str | None
    workers: int
    shards: int
    engine: EngineConfig
    device_memory: float | None = None
    host_memory: float | None = None
    adapters: tuple[tuple[str, str], ...] = ()  # names and folders
    resource: str | None = None  # that its workers' nodes have


@dataclass(frozen=True)
class Settled:
    """Of each of a model's workers: how it is made, and the part of a GPU that each of its shards has."""

    engine: EngineConfig
    num_gpus: float


def lacking_node(plans: Iterable[ModelPlan], there: Mapping[str, float]) -> ModelPlan | None:
    """The first model whose workers need a node with a resource that none has; `there` is what all have together."""
    return next((plan for plan in plans if plan.resource is not None and not there.get(plan.resource)), None)


def settle(plans: Sequence[ModelPlan], num_gpus: float, memory_bytes: int | None) -> list[Settled]:
    """Share out the GPUs there are, and this machine's memory: None if the workers are on others.

    Raises InvalidInput for more than there is.
    """
    parts = _parts(plans, num_gpus) if num_gpus >= 1 else [0.0] * len(plans)
    found = []
    for plan, part in zip(plans, parts, strict=True):
        engine, share = plan.engine, plan.device_memory
        if part:
            stated = share if share is not None and share <= 1 else engine.memory_share * part
            engine = replace(engine, memory_share=stated)
        elif share is not None and share <= 1:
            engine = replace(engine, pool_bytes=_bytes(share, memory_bytes, f"models.{plan.name}.device_memory"))
        if plan.host_memory is not None and plan.host_memory <= 1:
            own = _bytes(plan.host_memory, memory_bytes, f"models.{plan.name}.host_memory")
            engine = replace(engine, host_bytes=own)
        found.append(Settled(engine, part))
    if memory_bytes is not None:
        _check_memory(plans, found, memory_bytes)
    return found


def _parts(plans: Sequence[ModelPlan], num_gpus: float) -> list[float]:
    """Of a GPU, for each shard: the share stated, of what all together may have of one; a whole one where a worker has
    several; else an equal part of what is left, one at most."""
    pot = plans[0].engine.memory_share
    parts: list[float | None] = []
    for plan in plans:
        share = plan.device_memory
        if plan.shards > 1:
            parts.append(1.0)
        elif share is None or share > 1:
            parts.append(None)
        elif share > pot + NEARLY:
            expected = f"more than engine.memory_share, {pot:g}, leaves of a GPU for all models, expected less"
            raise InvalidInput(expected, field=f"models.{plan.name}.device_memory", value=share)
        else:
            parts.append(share / pot)
    stated = sum(plan.workers * plan.shards * (part or 0.0) for plan, part in zip(plans, parts, strict=True))
    num_open = sum(plan.workers for plan, part in zip(plans, parts, strict=True) if part is None)
    rest = num_gpus - stated
    equal = min(1.0, max(rest, 0.0) / num_open) if num_open else 0.0
    # The largest that goes on whole GPUs: three workers on two GPUs have halves, not two thirds.
    tried = sorted({equal, *(1.0 / number for number in range(1, MOST_ON_A_GPU + 1))}, reverse=True)
    layouts = [[_counted(each if part is None else part) for part in parts] for each in tried if each <= equal + NEARLY]
    found = next((layout for layout in layouts if _fit(plans, layout, num_gpus)), layouts[0])
    if rest < -NEARLY or (num_open and not equal) or not _fit(plans, found, num_gpus):
        said = ", ".join(
            f"{plan.name} {plan.workers * plan.shards} x {part:g}" for plan, part in zip(plans, found, strict=True)
        )
        raise InvalidInput(f"more than the {num_gpus:g} GPUs that Ray sees: {said}", field="models")
    return found


def _counted(part: float) -> float:
    """Ray counts in ten thousandths: rounded up, equal parts would be more than there is."""
    return math.floor(10_000 * part + NEARLY) / 10_000


def _fit(plans: Sequence[ModelPlan], parts: Sequence[float], num_gpus: float) -> bool:
    """Whether the parts go on whole GPUs, each on the fullest that has room for it, as Ray puts them."""
    free = [1.0] * math.floor(num_gpus + NEARLY)
    shards = [part for plan, part in zip(plans, parts, strict=True) for _ in range(plan.workers * plan.shards)]
    for part in sorted(shards, reverse=True):
        room = [left for left in free if left >= part - NEARLY]
        if not room:
            return False
        free[free.index(min(room))] -= part
    return True


def check_set_sizes(plan: ModelPlan, token_bytes: int, memory_bytes: int, *, on_gpu: bool) -> None:
    """Raises InvalidInput for caches of a machine's one model, where their sizes are set, that all of it could not
    hold. `token_bytes` are of a token's keys and values; the pool of a GPU is elsewhere."""
    engine = plan.engine
    in_tokens = engine.pool_tokens is not None
    sizes = {
        "cache.host_bytes": engine.host_bytes or 0,
        "engine.pool_tokens": 0 if on_gpu else token_bytes * (engine.pool_tokens or 0),
        "engine.pool_bytes": 0 if on_gpu or in_tokens else engine.pool_bytes or 0,
    }
    total = plan.workers * sum(sizes.values())
    if total <= memory_bytes:
        return
    field = max(sizes, key=lambda name: sizes[name])
    value = engine.pool_tokens if field == "engine.pool_tokens" else shown_bytes(sizes[field])
    whose = f"{plan.workers} workers' caches" if plan.workers > 1 else "the worker's caches"
    raise InvalidInput(
        f"{whose} would take {shown_bytes(total)}, expected at most this machine's memory, {shown_bytes(memory_bytes)}",
        field=field,
        value=value,
    )


def _check_memory(plans: Sequence[ModelPlan], settled: Sequence[Settled], memory_bytes: int) -> None:
    taken = []
    for plan, each in zip(plans, settled, strict=True):
        engine, on_gpu = each.engine, each.num_gpus > 0
        pool = 0 if on_gpu else CPU_POOL_BYTES if engine.pool_bytes is None else engine.pool_bytes
        host = (0 if on_gpu else CPU_HOST_BYTES) if engine.host_bytes is None else engine.host_bytes
        taken.append(plan.workers * (pool + host))
    if sum(taken) > memory_bytes:
        said = ", ".join(f"{plan.name} {shown_bytes(own)}" for plan, own in zip(plans, taken, strict=True))
        raise InvalidInput(
            f"keys and values of all workers would take {shown_bytes(sum(taken))} ({said}), expected at most the "
            f"machine's {shown_bytes(memory_bytes)}",
            field="models",
        )


def _bytes(share: float, memory_bytes: int | None, field: str) -> int:
    if memory_bytes is None:
        raise InvalidInput("a share of the memory of other machines, expected bytes", field=field, value=share)
    return int(share * memory_bytes)
