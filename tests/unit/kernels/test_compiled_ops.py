"""A model with compiled operations computes what it computed before; what is not what it seems is left alone."""

from __future__ import annotations

import copy
from types import FunctionType

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from laban.kernels.compiled_ops import ROTARY, CompiledNorm, compile_norms, compile_rotary

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize(
    ("config", "num_norms"), [(LlamaConfig(**SIZES), 5), (Qwen3Config(**SIZES), 9), (GemmaConfig(**SIZES), 0)]
)
def test_a_model_computes_what_it_did(config: PretrainedConfig, num_norms: int) -> None:
    """Gemma's norm multiplies by 1 + weight: it has the name of the others, and stays."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    compiled = copy.deepcopy(model)
    assert compile_norms(compiled) == num_norms
    assert compile_rotary(compiled, 16) == 2
    ids = torch.randint(0, 128, (1, 9))
    with torch.inference_mode():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
        # Batches of several sequences are none of ours, and still right.
        ids = torch.randint(0, 128, (3, 9))
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_other_models_keep_their_own_functions() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), attn_implementation="eager")
    attention = type(model.model.layers[0].self_attn)
    before = attention.forward.__globals__[ROTARY]
    compile_rotary(model, 16)
    assert isinstance(attention.forward, FunctionType)
    assert attention.forward.__globals__[ROTARY] is before


class CenteredRMSNorm(nn.Module):
    """Named like the others, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (8,), self.weight, eps=self.eps)


def test_a_norm_that_computes_something_else_stays() -> None:
    model = nn.Sequential(CenteredRMSNorm(), nn.RMSNorm(8, eps=1e-6))
    assert compile_norms(model) == 1
    assert isinstance(model[0], CenteredRMSNorm)
    assert isinstance(model[1], CompiledNorm)
