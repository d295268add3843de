"""A fused stack computes what the model's own layers do; layers that are not what they seem are left alone."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any
from unittest import mock

import pytest
import torch
from engine_reference import KINDS, random_model
from stack_checks import hidden_of_both, with_fused_norms
from torch import Tensor, nn
from transformers import PreTrainedModel

from laban.kernels import fused_layers
from laban.kernels.fused_layers import FusedStack

pytestmark = pytest.mark.slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_computes_what_the_model_does(kind: str) -> None:
    model = with_fused_norms(random_model(kind))
    stack = FusedStack.of(model.base_model)
    assert stack is not None
    for num_tokens in (1, 20):
        found, expected = hidden_of_both(model, stack, num_tokens)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_layers", [1, 40])
def test_models_are_known_however_they_round(kind: str, dtype: torch.dtype, num_layers: int) -> None:
    model = with_fused_norms(random_model(kind, num_hidden_layers=num_layers, layer_types=None).to(dtype))
    assert FusedStack.of(model.base_model) is not None


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_every_addition_is_fused(kind: str) -> None:
    model = with_fused_norms(random_model(kind))
    stack = FusedStack.of(model.base_model)
    assert stack is not None
    add = fused_layers.add_rms_norm_reference
    with mock.patch.object(fused_layers, "add_rms_norm_reference", side_effect=add) as added:
        hidden_of_both(model, stack, 5)
    assert added.call_count == 2 * model.config.num_hidden_layers


def test_looking_changes_nothing() -> None:
    model = with_fused_norms(random_model("llama"))
    before = dict(model.named_modules())
    with mock.patch.object(fused_layers, "is_close", return_value=False):
        assert FusedStack.of(model.base_model) is None
    assert FusedStack.of(model.base_model) is not None
    assert dict(model.named_modules()) == before
    assert list(dict(model.named_modules())) == list(before)


Forward = Callable[..., Any]


def own_forward(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    """What a decoder layer of Llama does; those below differ from it in one place."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    hidden_states = hidden_states + attended
    return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def scaled(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    hidden_states = hidden_states + 0.7 * attended
    return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def parallel(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    return hidden_states + attended + self.mlp(self.post_attention_layernorm(hidden_states))


def from_the_norm(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states = hidden_states + self.self_attn(hidden_states=hidden_states, **arguments)[0]
    return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def norms_swapped(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    attended, _ = self.self_attn(hidden_states=self.post_attention_layernorm(hidden_states), **arguments)
    hidden_states = hidden_states + attended
    return hidden_states + self.mlp(self.input_layernorm(hidden_states))


def normed_after(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    hidden_states = hidden_states + self.post_attention_layernorm(attended)
    return hidden_states + self.mlp(hidden_states)


def twice(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    return own_forward(self, own_forward(self, hidden_states, **arguments), **arguments)


def with_more_to_say(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    return own_forward(self, hidden_states, temperature=0.5, **arguments)


def silent(self: Any, hidden_states: Tensor, laban_check: object = None, **arguments: Any) -> Tensor:
    return own_forward(self, hidden_states, **arguments)


def at_other_positions(self: Any, hidden_states: Tensor, position_ids: Tensor, **arguments: Any) -> Tensor:
    return own_forward(self, hidden_states, position_ids=position_ids + 1, **arguments)


def of_another_kind(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    return self.attention(hidden_states)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("forward", "known"),
    [
        (own_forward, True),
        (scaled, False),
        (parallel, False),
        (from_the_norm, False),
        (norms_swapped, False),
        (normed_after, False),
        (twice, False),
        (with_more_to_say, False),
        (silent, False),
        (at_other_positions, False),
        (of_another_kind, False),
    ],
)
def test_only_layers_that_do_this(forward: Forward, known: bool, index: int, dtype: torch.dtype) -> None:
    """One layer of three is another."""
    model = with_fused_norms(random_model("llama").to(dtype))
    layer = model.model.layers[index]
    layer.forward = MethodType(forward, layer)
    assert (FusedStack.of(model.base_model) is not None) == known


def embedded_larger(model: PreTrainedModel) -> None:
    """In the model's forward, as Gemma 1 does."""
    first = model.model.layers[0]
    forward = first.forward
    first.forward = lambda hidden_states, **arguments: forward(hidden_states * 8.0, **arguments)


def cut_short(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 2


def with_masks(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


def without_last_norm(model: PreTrainedModel) -> None:
    model.model.norm.forward = lambda x: x


def with_other_last_norm(model: PreTrainedModel) -> None:
    model.model.norm = nn.LayerNorm(64)


def with_another_norm(model: PreTrainedModel) -> None:
    model.model.layers[1].input_layernorm = nn.LayerNorm(64)


def of_other_tables(model: PreTrainedModel) -> None:
    """As of a rotary embedding that is asked once more for one of the layers."""
    layer = model.model.layers[1]
    forward = layer.forward

    def turned(hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **arguments: Any) -> Tensor:
        return forward(hidden_states, position_embeddings=position_embeddings[::-1], **arguments)

    layer.forward = turned


def without_layers(model: PreTrainedModel) -> None:
    model.model.layers = nn.ModuleList()


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "change",
    [
        embedded_larger,
        cut_short,
        with_masks,
        without_last_norm,
        with_other_last_norm,
        with_another_norm,
        of_other_tables,
        without_layers,
    ],
)
def test_other_models_are_left_alone(kind: str, change: Callable[[PreTrainedModel], None]) -> None:
    model = with_fused_norms(random_model(kind))
    assert FusedStack.of(model.base_model) is not None
    change(model)
    assert FusedStack.of(model.base_model) is None


def test_modules_without_layers_are_none() -> None:
    assert FusedStack.of(nn.Linear(2, 2)) is None
    assert FusedStack.of(random_model("llama").base_model) is None  # its norms are its own
