"""The definition that the engine is compared with: an interpreter of views, dense and plain, one call at a time.

Every message is recorded as its values and its *unrotated* keys. A call sees, for each placement, those
keys rotated for where this view puts them, and its own new tokens causally. Attention is in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.masking_utils import AttentionMaskInterface

VOCAB_SIZE = 128
MAX_CONTEXT = 512


@dataclass
class Recorded:
    """One encoded message. keys (unrotated), values: [num_layers, num_tokens, num_kv_heads, head_dim] float64."""

    start: int
    keys: Tensor
    values: Tensor
    logits: Tensor  # [num_tokens, vocab_size]


@dataclass
class Placed:
    message: Recorded
    position: int
    begin: int
    end: int


class Interpreter:
    """Encodes messages with `model`, a transformers model of its own (not the engine's)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.inv_freq = model.base_model.rotary_emb.inv_freq.double()
        model.set_attn_implementation("laban_reference")

    @torch.no_grad()
    def encode(self, tokens: list[int], start: int, view: list[Placed]) -> Recorded:
        self.view = view
        self.positions = torch.arange(start, start + len(tokens))
        self.recorded: list[tuple[Tensor, Tensor]] = []
        logits = self.model(
            input_ids=torch.tensor([tokens]), position_ids=self.positions[None], use_cache=False, interpreter=self
        ).logits[0]
        keys, values = (torch.stack(x) for x in zip(*self.recorded, strict=True))
        return Recorded(start, keys, values, logits)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, dim] rotated by `positions`, with no attention scaling."""
        angles = positions.double()[:, None] * self.inv_freq
        cos, sin = (f(torch.cat((angles, angles), -1))[:, None] for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x[0].transpose(0, 1).double() for x in (q, k, v))  # [num_tokens, heads, dim]
        n, group = q.shape[0], q.shape[1] // k.shape[1]
        self.recorded.append((self.rotate(k, -self.positions), v))
        keys, values = [], []
        for placed in self.view:
            at = torch.arange(placed.position, placed.position + placed.end - placed.begin)
            keys.append(self.rotate(placed.message.keys[layer, placed.begin : placed.end], at))
            values.append(placed.message.values[layer, placed.begin : placed.end])
        all_keys = torch.cat([*keys, k]).repeat_interleave(group, 1)
        all_values = torch.cat([*values, v]).repeat_interleave(group, 1)
        scores = torch.einsum("nhd,mhd->hnm", q, all_keys) * scale
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores[:, :, all_keys.shape[0] - n :].masked_fill_(hidden, -torch.inf)
        return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), all_values).float()


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *, scaling: float, **kwargs: Any) -> Any:
    return kwargs["interpreter"].attend(module.layer_idx, q, k, v, scaling)[None], None


AttentionInterface.register("laban_reference", _attention)
AttentionMaskInterface.register("laban_reference", lambda *a, **k: None)

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_CONTEXT,
    "initializer_range": 0.2,  # the default leaves attention nearly uniform, and a wrong position unnoticed
}
KINDS = ("llama", "llama3-rope", "yarn-rope", "qwen2", "qwen3", "mistral")


def random_model(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A small random model in float32. The same seed gives the same weights. `changes` are of its configuration."""
    torch.manual_seed(seed)
    shape = _SHAPE | changes
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if kind == "llama3-rope":
        rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope))
    if kind == "yarn-rope":
        rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
        return LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=24))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=None))
    raise ValueError(kind)
