"""What tells a model's layers apart when they attend: their rotary frequencies and how far back they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laban.actors.errors import UnsupportedModel


@dataclass(frozen=True, slots=True, eq=False)
class LayerKind:
    """How the layers of one kind attend.

    In a windowed layer a query at position p of its view sees a key placed at position s only if p - s < window.
    """

    inv_freq: Tensor  # [rotary_dim / 2] float32, as the model has it
    attention_scaling: float  # that the model's cosines and sines carry (yarn's is not 1); stored keys have it
    window: int | None  # tokens; None sees everything

    def is_like(self, other: LayerKind) -> bool:
        same = self.attention_scaling == other.attention_scaling and self.window == other.window
        return same and self.turns_like(other)

    def turns_like(self, other: LayerKind) -> bool:
        """Whether a query turned for one is turned for the other."""
        return self.inv_freq is other.inv_freq or torch.equal(self.inv_freq, other.inv_freq)


def layer_kinds(model: PreTrainedModel) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """The distinct kinds of `model`'s layers, in order of first use, and the index of each layer's.

    Raises UnsupportedModel for layers that attend in another way, or whose frequencies are not found.
    """
    kinds: list[LayerKind] = []
    indices: list[int] = []
    rotary = getattr(model.base_model, "rotary_emb", None)
    layers: nn.ModuleList = model.base_model.layers  # type: ignore[assignment]
    types = getattr(model.config, "layer_types", None) or [None] * len(layers)
    for layer, layer_type in zip(layers, types, strict=False):  # a model cut short keeps its list of types
        if layer_type not in (None, "full_attention", "sliding_attention"):
            raise UnsupportedModel(f"{type(model).__name__}: {layer_type} layers are not served", field="model")
        inv_freq, scaling = _frequencies(model, rotary, layer_type)
        kind = LayerKind(inv_freq, scaling, _window(layer.self_attn, model.config))
        index = next((i for i, known in enumerate(kinds) if kind.is_like(known)), len(kinds))
        if index == len(kinds):
            kinds.append(kind)
        indices.append(index)
    return tuple(kinds), tuple(indices)


def _frequencies(model: PreTrainedModel, rotary: Any, layer_type: str | None) -> tuple[Tensor, float]:
    """The model's one rotary embedding, or the one it has for `layer_type` (Gemma 3)."""
    for prefix in ("", f"{layer_type}_"):
        inv_freq = getattr(rotary, f"{prefix}inv_freq", None)
        if isinstance(inv_freq, Tensor):
            return inv_freq, float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
    raise UnsupportedModel(
        f"{type(model).__name__} has no rotary embedding known here, so its queries cannot be turned", field="model"
    )


def _window(attention: Any, config: Any) -> int | None:
    """The layer's own word on its window; Mistral's layers have none, its model masks all of them alike."""
    default = config.sliding_window if config.model_type == "mistral" else None
    window: int | None = getattr(attention, "sliding_window", default)
    return window
