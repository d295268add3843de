"""A random Llama of 8B shapes made on the card, an engine over it, and what the card itself can do."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from gpu_timing import looped_us
from report import Row
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.fused_runner import FusedRunner
from laban.actors.engine.load import make_engine
from laban.actors.tokenizer import Tokenizer

NAMESPACE = "bench"
LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
TINY_POOL_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Size:
    """The workloads as they are named, or so much smaller that a CPU runs all of them in a minute."""

    tiny: bool = False

    def tokens(self, count: int) -> int:
        return max(2, count // 128) if self.tiny else count

    def calls(self, count: int) -> int:
        return max(2, count // 8) if self.tiny and count > 1 else count

    def outputs(self, count: int) -> int:
        return max(1, count // 8) if self.tiny else count

    @property
    def model(self) -> dict[str, object]:
        return {**LLAMA_8B, **TINY} if self.tiny else LLAMA_8B


def random_model(size: Size, device: torch.device, **changes: object) -> PreTrainedModel:
    """Of bfloat16 on a card, of float32 on a CPU; `changes` are of its configuration."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**{**size.model, **changes}))
    finally:
        torch.set_default_dtype(before)


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """Token 17 is the text " 17"."""
    backend = Backend(models.WordLevel(vocab={f" {i}": i for i in range(vocab_size)}, unk_token=" 0"))
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend)


def open_engine(size: Size, device: torch.device, seed: int) -> tuple[Engine, list[Row]]:
    """The engine as a worker has it, and what its start took. Off a card the fused runner computes by references."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    model = random_model(size, device)
    made = time.perf_counter()
    tokenizer = word_tokenizer(model.config.vocab_size)
    config = EngineConfig(cuda_graphs=False, drafting=False).settled(device.type, "bfloat16")  # they are captured below
    if device.type == "cuda":
        engine = make_engine(model, tokenizer, config, device, namespace=NAMESPACE)
    else:
        runner = FusedRunner(
            model, TINY_POOL_TOKENS, page_size=config.page_size, max_batch_tokens=config.batch_tokens, max_running=64
        )
        engine = Engine(runner, tokenizer, config, namespace=NAMESPACE)
    rows = [
        Row("start.weights", made - began, "s", better="lower"),
        Row("start.engine", time.perf_counter() - made, "s", better="lower"),
        Row("start.pool", float(engine.info.pool_tokens), "tokens"),
    ]
    return engine, rows + (_capture(engine) if device.type == "cuda" else [])


def _capture(engine: Engine) -> list[Row]:
    """Captures the CUDA graphs: seconds, of which most compile kernels the first time, and bytes of the card."""
    assert isinstance(engine.runner, FusedRunner)
    device = engine.runner.device
    torch.cuda.synchronize(device)
    free_bytes, began = torch.cuda.mem_get_info(device)[0], time.perf_counter()
    engine.runner.capture()
    torch.cuda.synchronize(device)
    seconds, taken = time.perf_counter() - began, free_bytes - torch.cuda.mem_get_info(device)[0]
    return [
        Row("start.graphs", seconds, "s", better="lower"),
        Row("start.graphs.memory", taken / 2**20, "MiB", better="lower"),
    ]


def measure_ceilings(size: Size, device: torch.device, reps: int) -> list[Row]:
    """What no kernel can beat: bytes copied within the card, and products of large matrices."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = size.tokens(8192)
    source = torch.randn(width * size.tokens(65_536), device=device).to(dtype)
    target = torch.empty_like(source)
    copy_us = looped_us(lambda: target.copy_(source), device, reps)
    moved = 2 * source.numel() * source.itemsize
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    product_us = looped_us(lambda: torch.mm(a, b, out=product), device, reps)
    return [
        Row("ceiling.copy", moved / copy_us / 1e6, "TB/s"),
        Row("ceiling.product", 2 * width**3 / product_us / 1e6, "TFLOP/s"),
    ]


def describe(device: torch.device) -> str:
    """The card, and the torch with its CUDA."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"
