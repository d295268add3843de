"""From a model folder to an engine: threads, device, weights, pool."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.runner import Runner, bytes_per_token
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.sharding import local_num_kv_heads, shard_model
from laban.actors.errors import Exhausted, InvalidInput
from laban.actors.model_folder import check_model_folder
from laban.actors.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CPU_POOL_BYTES = 1 << 30
GPU_POOL_SHARE = 0.85  # of what the weights leave free; the rest is for activations
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_engine(
    folder: str | Path, config: EngineConfig, worker_id: str = "worker-0", group: ShardGroup | None = None
) -> Engine:
    """Loads a Hugging Face model folder, or this shard's slice of it. Raises LabanError if it cannot be served."""
    facts = check_model_folder(Path(folder))
    if config.dtype not in DTYPES:
        raise InvalidInput(f"must be one of {', '.join(DTYPES)}", field="engine.dtype", value=config.dtype)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = pick_device(config.device) if group is None else group.device
    if device.type == "cpu":
        keep_freed_memory()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[config.dtype], attn_implementation="eager", local_files_only=True
    )
    if group is None:
        model.to(device)  # type: ignore[arg-type]  # its signature is a decorator's
        slots = num_slots(model, config)
    else:
        shard_model(model, group)
        slots = group.smallest(num_slots(model, config))
    runner = Runner(model, slots, group)
    engine = Engine(
        runner,
        Tokenizer.from_folder(folder),
        config,
        worker_id=worker_id,
        namespace=f"{facts.fingerprint}/{config.dtype}",
        model_name=Path(folder).name,
        max_context=facts.max_context,
    )
    log.info("%s: %s on %s, attention %s", worker_id, folder, device, runner.attention_backend)
    return engine


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


def num_slots(model: PreTrainedModel, config: EngineConfig) -> int:
    """Slots of the pool: `config.pool_tokens`, or what memory allows, in whole pages."""
    per_token = (
        bytes_per_token(model.config, model.dtype) * local_num_kv_heads(model) // model.config.num_key_value_heads
    )
    if config.pool_tokens is not None:
        tokens = config.pool_tokens
    elif model.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(model.device)
        tokens = int(free_bytes * GPU_POOL_SHARE) // per_token
    else:
        tokens = CPU_POOL_BYTES // per_token
    pages = tokens // config.page_size
    if pages < 1:
        raise Exhausted(
            f"the pool would have room for {tokens} tokens, less than one page of {config.page_size}",
            field="engine.pool_tokens",
        )
    return pages * config.page_size
