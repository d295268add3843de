"""From a model folder to an engine: threads, device, weights, pool."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from laban.actors.disk_folder import prepare_disk_folder
from laban.actors.engine.adapters import Adapters, load_adapter
from laban.actors.engine.config import CPU_POOL_BYTES, EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.host_memory import default_host_bytes
from laban.actors.engine.runner import AnyRunner, Runner, bytes_per_token
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.sharding import local_num_kv_heads, shard_model
from laban.actors.engine.tiers import Tiers
from laban.actors.engine.tiers_setup import make_tiers
from laban.actors.errors import Exhausted, InvalidInput, cause_of
from laban.actors.machine_memory import memory_bytes
from laban.actors.model_folder import check_model_folder
from laban.actors.models import Progress, say_nothing
from laban.actors.tokenizer import Tokenizer

if TYPE_CHECKING:
    from laban.actors.engine.fused_runner import FusedRunner

log = logging.getLogger(__name__)

GRAPH_BYTES = 1 << 30  # for captured graphs and what libraries take for themselves at their first use
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_engine(
    folder: str | Path,
    config: EngineConfig,
    worker_id: str = "worker-0",
    group: ShardGroup | None = None,
    progress: Progress = say_nothing,
) -> Engine:
    """Loads a Hugging Face model folder, or this shard's slice of it. Raises LabanError if it cannot be served."""
    facts = check_model_folder(Path(folder))
    if config.disk_folder is not None:
        prepare_disk_folder(config.disk_folder)
    device = pick_device(config.device) if group is None else group.device
    config = config.settled(device.type, facts.dtype)
    _check_host_bytes(config.host_bytes, 1 if group is None else group.size)
    if config.dtype not in DTYPES:
        raise InvalidInput(f"must be auto or one of {', '.join(DTYPES)}", field="engine.dtype", value=config.dtype)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if device.type == "cpu":
        keep_freed_memory()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    progress("loading weights", None)
    model = _load_model(folder, DTYPES[config.dtype])
    adapters = Adapters([load_adapter(each, folder) for each in config.adapters])
    engine = make_engine(
        model,
        Tokenizer.from_folder(folder),
        config,
        device,
        group,
        progress,
        worker_id=worker_id,
        namespace=f"{facts.fingerprint}/{config.dtype}",
        model_name=Path(folder).name,
        max_context=facts.max_context,
        adapters=adapters,
    )
    info = engine.info
    log.info(
        "%s: %s in %s on %s, attention by %s, a pool of %d tokens",
        worker_id, folder, info.dtype, info.device, info.attention_backend, info.num_pages * info.page_size,
    )  # fmt: skip
    return engine


def _check_host_bytes(host_bytes: int | None, num_shards: int) -> None:
    """Whoever made the worker may not know the machine that it is on."""
    there = memory_bytes()
    if host_bytes is not None and host_bytes // num_shards > there:
        raise InvalidInput(
            f"the worker's machine has {there} bytes of memory, expected less", field="cache.host_bytes",
            value=host_bytes,
        )  # fmt: skip


def _load_model(folder: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """Raises InvalidInput for a configuration that transformers does not take."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        log.debug("%s cannot be loaded", folder, exc_info=True)
        why = f"{folder} cannot be loaded, is its config.json right? transformers says {cause_of(error)}"
        raise InvalidInput(why, field="model") from None
    return model


def make_engine(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    config: EngineConfig,
    device: torch.device,
    group: ShardGroup | None = None,
    progress: Progress = say_nothing,
    adapters: Adapters | None = None,
    **identity: Any,
) -> Engine:
    """An engine over a model in memory, which is changed in place: sliced, moved, its layers merged or packed.

    `identity` are the engine's keyword arguments.
    """
    progress("preparing the model", None)
    if group is not None:
        shard_model(model, group)
        if config.pool_bytes is not None:
            config = replace(config, pool_bytes=config.pool_bytes // group.size)
    elif model.device != device:
        model.to(device)  # type: ignore[arg-type]  # its signature is a decorator's
    runner: AnyRunner
    if device.type == "cuda":
        runner = _runner_on_gpu(model, config, group, progress, adapters)
    else:
        runner = Runner(model, _all(num_slots(model, config), group), group, adapters)
    tiers = _tiers(runner, config, group, identity.get("namespace", ""), progress)
    return Engine(runner, tokenizer, config, tiers=tiers, **identity)


def _tiers(
    runner: AnyRunner, config: EngineConfig, group: ShardGroup | None, namespace: str, progress: Progress
) -> Tiers:
    """Those below the device; of a worker's shards each has its part of the host's memory, and of the disk."""
    num_bytes, num_shards = config.host_bytes, 1 if group is None else group.size
    if num_bytes is None:
        on_gpu = runner.device.type == "cuda"
        num_bytes = default_host_bytes(on_gpu=on_gpu, workers_sharing=config.num_workers)
    return make_tiers(
        runner,
        config,
        _all(num_bytes // num_shards, group),
        namespace=namespace,
        disk_folder=None if config.disk_folder is None else Path(config.disk_folder),
        progress=progress,
        group=group,
    )


def _runner_on_gpu(
    model: PreTrainedModel,
    config: EngineConfig,
    group: ShardGroup | None,
    progress: Progress,
    adapters: Adapters | None,
) -> FusedRunner:
    from laban.actors.engine.fused_runner import FusedRunner

    try:
        runner = FusedRunner(
            model,
            config.page_size,
            page_size=config.page_size,
            max_batch_tokens=config.batch_tokens,
            max_running=config.max_running,
            group=group,
            attention=None if config.attention == "auto" else config.attention,
            adapters=adapters,
        )
    except ValueError as error:
        raise InvalidInput(str(error), field="engine.attention", value=config.attention) from None
    progress("measuring the largest forward", None)
    slots = num_slots(model, config, runner.measure(config.batch_tokens))
    runner.make_pool(_all(slots, group))
    if config.cuda_graphs:
        runner.capture(progress)
    return runner


def _all(slots: int, group: ShardGroup | None) -> int:
    """What every shard has room for."""
    return slots if group is None else group.smallest(slots)


def pick_device(name: str) -> torch.device:
    """Raises InvalidInput for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if (
        device is None
        or device.type not in ("cpu", "cuda")
        or (device.type == "cuda" and not torch.cuda.is_available())
    ):
        raise InvalidInput("must be auto, cpu or cuda, and the machine must have it", field="engine.device", value=name)
    return device


def keep_freed_memory() -> None:
    """Tells glibc to keep what the process frees, for its next use.

    Every operation of a forward allocates megabytes and frees them again. Handed back to the system and faulted
    in anew each time, that costs more than the arithmetic of a small batch: attention of 8 calls over 512 tokens
    takes a quarter of the time without. Other C libraries have no such call, and nothing happens.
    """
    trim_threshold, mmap_threshold, limit = -1, -3, 1 << 30
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, limit)
        mallopt(trim_threshold, limit)


def num_slots(model: PreTrainedModel, config: EngineConfig, forward_bytes: int = 0) -> int:
    """Slots of the pool: `config.pool_tokens`, `config.pool_bytes`, or what memory allows beside a forward's, in whole
    pages. Raises Exhausted for less than a page, and more bytes than a GPU has left or the machine has."""
    per_token = (
        bytes_per_token(model.config, model.dtype) * local_num_kv_heads(model) // model.config.num_key_value_heads
    )
    if config.pool_tokens is not None:
        tokens = config.pool_tokens
    elif model.device.type == "cuda":
        torch.cuda.empty_cache()
        free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
        own_bytes = config.memory_share * total_bytes - torch.cuda.memory_allocated(model.device)
        left_bytes = int(min(own_bytes, free_bytes) - forward_bytes - GRAPH_BYTES)
        if config.pool_bytes is not None and config.pool_bytes > left_bytes:
            raise Exhausted(
                f"{config.pool_bytes} bytes for keys and values, but weights and forwards leave {max(0, left_bytes)}",
                field="engine.pool_bytes",
            )
        tokens = (left_bytes if config.pool_bytes is None else config.pool_bytes) // per_token
    else:
        tokens = (CPU_POOL_BYTES if config.pool_bytes is None else config.pool_bytes) // per_token
    if model.device.type == "cpu" and tokens * per_token > memory_bytes():
        raise Exhausted(
            f"{tokens} tokens take {tokens * per_token} bytes, but the machine has {memory_bytes()} of memory",
            field="engine.pool_bytes" if config.pool_tokens is None else "engine.pool_tokens",
        )
    pages = tokens // config.page_size
    if pages < 1:
        raise Exhausted(
            f"the pool would have room for {max(0, tokens)} tokens, less than one page of {config.page_size}",
            field="engine.pool_tokens",
        )
    return pages * config.page_size
