"""How the layers of one forward attend: by the fused kernel's plans, or by a stock FlashAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from laban.actors.engine.plan_buffers import PlanBuffers
from laban.kernels.flash import FlashPlan, attend_flash
from laban.kernels.view_reference import attend_views_reference

if TYPE_CHECKING:
    from laban.actors.engine.fused_runner import FusedRunner

ATTENTION = "laban_fused"


@dataclass(frozen=True, slots=True)
class FusedStep:
    """How the layers attend in a forward of `num_tokens` (padded) tokens: by the fused kernel's plans."""

    runner: FusedRunner
    num_tokens: int
    plans: tuple[PlanBuffers, ...]  # of each kind of layer
    wide: bool

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [num_tokens, num_heads, head_dim], k, v [num_tokens, num_kv_heads, head_dim], not rotated yet."""
        runner = self.runner
        plans = self.plans[runner.kind_of_layer[layer]]
        pools = runner.k_pool[layer], runner.v_pool[layer]
        rotated = runner.rotate(layer, q, k, v, self.num_tokens, plans)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if runner.scratch is None:
            attend_views_reference(rotated, *pools, plans.host, plans.inv_freq, plans.shape, scale, out)
        else:
            from laban.kernels.view_kernel import attend_views

            shape, tile = plans.choice.of(self.wide), runner.tiles[self.wide]
            attend_views(rotated, self.num_tokens, *pools, plans.plan, runner.scratch, shape, tile, scale, out)
        return out


@dataclass(frozen=True, slots=True)
class FlashStep:
    """How the layers attend in a forward of long prefills alone: by a stock FlashAttention."""

    runner: FusedRunner
    num_tokens: int
    plans: tuple[FlashPlan, ...]  # of each kind of layer

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """As FusedStep's."""
        runner = self.runner
        k_pool, v_pool = runner.k_pool[layer], runner.v_pool[layer]
        q = runner.rotate(layer, q, k, v, self.num_tokens)
        rotated = k_pool.index_select(0, runner.inputs.slots(self.num_tokens))
        plan = self.plans[runner.kind_of_layer[layer]]
        return attend_flash(runner.flash, q, rotated, v, k_pool, v_pool, plan, scale)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float, laban_step: FusedStep | FlashStep, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim]."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return laban_step.attend(module.layer_idx, q, k, v, scaling)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
