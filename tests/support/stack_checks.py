"""Checks of a fused stack of layers: against the same model's own forward, every attention its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from laban.kernels.fused_layers import FusedStack
from laban.kernels.fused_modules import install

ATTENTION = "laban_stack_check"


def with_fused_norms(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, in place, with norms that are not what they begin as; rotating by itself, and seeing without masks."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    model.set_attn_implementation(ATTENTION)
    install(model)
    return model.eval()


@torch.inference_mode()
def hidden_of_both(model: PreTrainedModel, stack: FusedStack, num_tokens: int) -> tuple[Tensor, Tensor]:
    """[num_tokens, hidden_size] of the stack and of the model's own forward, of the same random tokens."""
    ids = torch.randint(0, model.config.vocab_size, (num_tokens,), device=model.device, dtype=torch.int32)
    positions = torch.randperm(3 * num_tokens, device=model.device, dtype=torch.int32)[:num_tokens]
    window = torch.tensor(1 + num_tokens // 2, device=model.device)
    found = stack.forward(ids, positions, check_window=window)
    expected = model.base_model(
        input_ids=ids[None], position_ids=positions[None], use_cache=False, check_window=window
    ).last_hidden_state[0]
    return found, expected


def _attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: None, *, scaling: float, check_window: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Causal, over `check_window` tokens."""
    assert mask is None
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    at = torch.arange(q.shape[2], device=q.device)
    back = at[:, None] - at
    scores = (q.float() @ k.float().transpose(2, 3) * scaling).masked_fill(
        (back < 0) | (back >= check_window), -torch.inf
    )
    return (scores.softmax(-1) @ v.float()).to(q.dtype).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
