"""The tensors that a model's configuration asks for, and whether its weights are those. Never imports torch.

As transformers builds them: every weight of the architectures that are served has a shape that a few keys give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laban.actors.errors import InvalidInput

# Of what a configuration leaves out, as transformers has them; where there is none, the hidden size is divided by the
# heads, and there are as many heads of keys as of queries.
DEFAULT_HEAD_DIM = {"qwen3": 128, "gemma3_text": 256}
DEFAULT_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma3_text": 4}
TIED_BY_DEFAULT = ("gemma3_text",)
# Of transformers' activations those without weights of their own.
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "swish", "tanh",
)  # fmt: skip
NORMS_OF_HEADS = ("qwen3", "gemma3_text")
FOUR_NORMS = ("gemma3_text",)
WITH_BIAS_KEY = ("llama", "qwen3", "gemma3_text")  # Qwen2 has biases always, Mistral never
# Older folders also hold frequencies, which are computed.
_LAYER = re.compile(r"^model\.layers\.(?P<layer>\d+)\.(?P<part>.+\.(weight|bias))$")


class Size(NamedTuple):
    """A dimension of a tensor, and the keys that give it."""

    value: int
    given_by: str


Shape = tuple[Size, ...]


def num_kv_heads(config: Mapping[str, Any]) -> int:
    default = None if "num_key_value_heads" in config else DEFAULT_KV_HEADS.get(config["model_type"])
    found: int = config.get("num_key_value_heads") or default or config["num_attention_heads"]
    return found


def head_dim(config: Mapping[str, Any]) -> int:
    default = DEFAULT_HEAD_DIM.get(config["model_type"], config["hidden_size"] // config["num_attention_heads"])
    found: int = config.get("head_dim") or default
    return found


def expected_tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes by name, outer ones first. `config` is of an architecture that is served, its counts are counts."""
    kind = config["model_type"]
    heads, kv_heads, dim = config["num_attention_heads"], num_kv_heads(config), head_dim(config)
    hidden = Size(config["hidden_size"], f"hidden_size {config['hidden_size']}")
    inner = Size(config["intermediate_size"], f"intermediate_size {config['intermediate_size']}")
    vocab = Size(config["vocab_size"], f"vocab_size {config['vocab_size']}")
    queries = Size(heads * dim, f"num_attention_heads {heads} x head_dim {dim} = {heads * dim}")
    keys = Size(kv_heads * dim, f"num_key_value_heads {kv_heads} x head_dim {dim} = {kv_heads * dim}")
    has_out_bias = kind in WITH_BIAS_KEY and bool(config.get("attention_bias"))
    has_bias = kind == "qwen2" or has_out_bias
    has_mlp_bias = kind == "llama" and bool(config.get("mlp_bias"))

    layer: dict[str, Shape] = {}
    for name, rows, columns, biased in (
        ("self_attn.q_proj", queries, hidden, has_bias),
        ("self_attn.k_proj", keys, hidden, has_bias),
        ("self_attn.v_proj", keys, hidden, has_bias),
        ("self_attn.o_proj", hidden, queries, has_out_bias),
        ("mlp.gate_proj", inner, hidden, has_mlp_bias),
        ("mlp.up_proj", inner, hidden, has_mlp_bias),
        ("mlp.down_proj", hidden, inner, has_mlp_bias),
    ):
        layer[f"{name}.weight"] = (rows, columns)
        if biased:
            layer[f"{name}.bias"] = (rows,)
    if kind in NORMS_OF_HEADS:
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            layer[f"{name}.weight"] = (Size(dim, f"head_dim {dim}"),)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind in FOUR_NORMS:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    layer |= {f"{name}.weight": (hidden,) for name in norms}

    found: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", kind in TIED_BY_DEFAULT):
        found["lm_head.weight"] = (vocab, hidden)
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return found


def require_tensors(folder: Path, config: Mapping[str, Any], held: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InvalidInput, naming the keys, unless `held`, shapes by name, are the weights that `config` describes."""

    def refuse(reason: str) -> InvalidInput:
        return InvalidInput(f"{folder}/config.json: {reason}", field="model")

    expected = expected_tensors(config)
    for name, shape in expected.items():
        found = held.get(name)
        if found is None or found == tuple(size.value for size in shape):
            continue
        if len(found) != len(shape):
            raise refuse(f"{name} has {len(shape)} dimensions, but in the weights it is {list(found)}")
        size, real = next((size, real) for size, real in zip(shape, found, strict=True) if size.value != real)
        raise refuse(f"{size.given_by}, but the weights have {real} ({name} is {list(found)})")
    kind, num_layers = config["model_type"], config["num_hidden_layers"]
    if missing := [name for name in expected if name not in held]:
        why = _why_missing(missing[0], held, kind, num_layers)
        raise InvalidInput(f"{folder}: the weights lack {missing[0]} ({len(missing)} such tensors){why}", field="model")
    # transformers would load the model without these.
    matches = [_LAYER.match(name) for name in held if name not in expected]
    for match in (each for each in matches if each is not None):
        if int(match["layer"]) >= num_layers:
            there = 1 + max(int(each["layer"]) for each in matches if each is not None)
            raise refuse(f"num_hidden_layers {num_layers}, but the weights have {there} layers")
        hint = f"; expected {key} true" if (key := _bias_key(match["part"], kind)) else ""
        raise refuse(f"this {kind} has no {match[0]}, but the weights do{hint}")


def _why_missing(name: str, held: Mapping[str, object], kind: str, num_layers: int) -> str:
    match = _LAYER.match(name)
    if name == "lm_head.weight":
        return ", and config.json says tie_word_embeddings false"
    if match is None:
        return ""
    if key := _bias_key(match["part"], kind):
        return f", and config.json says {key} true"
    is_there = any(other.startswith(f"model.layers.{match['layer']}.") for other in held)
    return "" if is_there else f", and config.json says num_hidden_layers {num_layers}"


def _bias_key(part: str, kind: str) -> str:
    """That gives this part of a layer its bias; "" where none does."""
    if not part.endswith(".bias"):
        return ""
    return "mlp_bias" * (kind == "llama") if part.startswith("mlp.") else "attention_bias" * (kind in WITH_BIAS_KEY)
