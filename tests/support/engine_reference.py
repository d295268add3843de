"""The definition that the engine is compared with: an interpreter of views, dense and plain, one call at a time.

Every message is recorded as its values and its *unrotated* keys. A call sees, for each placement, those
keys rotated for where this view puts them, and its own new tokens causally; in a layer with a window, less what
is as far behind as the window. Attention is in float64.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
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
        config, rotary = model.config, model.base_model.rotary_emb
        types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        windowed = {"qwen2", "qwen3", "mistral", "gemma3_text"}
        window = config.sliding_window if config.model_type in windowed else None
        self.windows = [window if kind == "sliding_attention" else None for kind in types]
        own = config.model_type == "gemma3_text"  # frequencies of each type of layer
        self.inv_freq = [(getattr(rotary, f"{kind}_inv_freq") if own else rotary.inv_freq).double() for kind in types]
        model.set_attn_implementation("laban_reference")

    @torch.no_grad()
    def encode(self, tokens: list[int], start: int, view: list[Placed]) -> Recorded:
        return self.encode_differentiably(tokens, start, view)

    def encode_differentiably(self, tokens: list[int], start: int, view: list[Placed]) -> Recorded:
        """`encode`, with gradients for what the weights made of the messages that are read, too."""
        self.view = view
        self.positions = torch.arange(start, start + len(tokens))
        self.recorded: list[tuple[Tensor, Tensor]] = []
        logits = self.model(
            input_ids=torch.tensor([tokens]), position_ids=self.positions[None], use_cache=False, interpreter=self
        ).logits[0]
        keys, values = (torch.stack(x) for x in zip(*self.recorded, strict=True))
        return Recorded(start, keys, values, logits)

    def rotate(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, dim] rotated by `positions`, with no attention scaling."""
        angles = positions.double()[:, None] * self.inv_freq[layer]
        cos, sin = (f(torch.cat((angles, angles), -1))[:, None] for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x[0].transpose(0, 1).double() for x in (q, k, v))  # [num_tokens, heads, dim]
        n, group = q.shape[0], q.shape[1] // k.shape[1]
        self.recorded.append((self.rotate(layer, k, -self.positions), v))
        keys, values, places = [], [], []
        for placed in self.view:
            at = torch.arange(placed.position, placed.position + placed.end - placed.begin)
            places.append(at)
            keys.append(self.rotate(layer, placed.message.keys[layer, placed.begin : placed.end], at))
            values.append(placed.message.values[layer, placed.begin : placed.end])
        all_keys = torch.cat([*keys, k]).repeat_interleave(group, 1)
        all_values = torch.cat([*values, v]).repeat_interleave(group, 1)
        scores = torch.einsum("nhd,mhd->hnm", q, all_keys) * scale
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores[:, :, all_keys.shape[0] - n :].masked_fill_(hidden, -torch.inf)
        if (window := self.windows[layer]) is not None:
            behind = self.positions[:, None] - torch.cat([*places, self.positions])
            scores.masked_fill_(behind >= window, -torch.inf)
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
WINDOW = 24
_SWITCHED = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_GEMMA = {
    "head_dim": 24,
    "query_pre_attn_scalar": 30,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
    },
}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
_MODELS: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _LLAMA3}),
    "yarn-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _YARN}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config, _SWITCHED),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24}),
    "qwen3-window": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24, **_SWITCHED}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, _GEMMA),
}
KINDS = tuple(kind for kind in _MODELS if kind != "qwen3-window")
DRAWN_KINDS = tuple(f"drawn-{seed}" for seed in range(8))


def random_model(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A small random model in float32. The same seed gives the same weights. `changes` are of its configuration."""
    if kind.startswith("drawn-"):
        kind, drawn = _drawn(int(kind.removeprefix("drawn-")))
        changes = drawn | changes
    torch.manual_seed(seed)
    model_class, config_class, settings = _MODELS[kind]
    model = model_class(config_class(**(_SHAPE | settings | changes)))
    if kind == "gemma3":
        for name, parameter in model.named_parameters():
            if "norm" in name:  # they begin at zero
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def _drawn(seed: int) -> tuple[str, dict[str, Any]]:
    """A kind with windows, as they come, and the shape of a model of it."""
    draw = random.Random(seed)
    kind = ("gemma3", "mistral-window", "qwen2-window", "qwen3-window")[seed % 4]
    num_layers, num_kv_heads = draw.randint(1, 4), draw.choice([1, 2, 3])
    num_heads = num_kv_heads * draw.choice([1, 2, 4])
    head_dim = draw.choice([16, 24, 32, 64])
    changes: dict[str, Any] = {
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_size": num_heads * (head_dim if kind == "qwen2-window" else draw.choice([8, 20])),
        "sliding_window": draw.choice([1, 2, 16, 33, 100]),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    if kind == "gemma3":
        changes["layer_types"] = [draw.choice(["sliding_attention", "full_attention"]) for _ in range(num_layers)]
        changes["query_pre_attn_scalar"] = draw.choice([head_dim, 20])
        changes["final_logit_softcapping"] = draw.choice([None, 5.0])
    elif kind != "mistral-window":
        changes["max_window_layers"] = draw.randint(0, num_layers)
    return kind, changes
