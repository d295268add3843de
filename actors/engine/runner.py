"""The model and the pool: one forward of a batch. The definitions are transformers', behind its attention interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from laban.actors.calls import Sampling
from laban.actors.engine.adapters import Adapters
from laban.actors.engine.batch import Batch, build_batch
from laban.actors.engine.launched import Launched
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.layers import layer_kinds
from laban.actors.engine.sampler import AskMasks, sampling_params
from laban.actors.engine.sequence import Chunk, scored_rows
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.sharding import local_num_heads, local_num_kv_heads
from laban.kernels.compiled_ops import compile_norms, compile_rotary
from laban.kernels.packed_linear import can_pack, pack_linears
from laban.kernels.row_attention import compile_rows, has_compiled_rows
from laban.kernels.sampling import sample_rows
from laban.kernels.view_attention import attend, attention_backend

ATTENTION = "laban_views"


class AnyRunner(Protocol):
    """What the engine needs of a runner."""

    overlaps: bool  # whether a launch returns before its iteration is done, so that the next can be planned meanwhile
    group: ShardGroup | None
    model: PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    attention_backend: str
    k_pool: Tensor
    v_pool: Tensor
    adapters: Adapters
    gates: LayerGates | None  # at which its forwards wait for loads, layer by layer

    def launch(
        self,
        chunks: Sequence[Chunk],
        samplings: Sequence[Sampling],
        indices: Sequence[int],
        ask_masks: AskMasks | None = None,
    ) -> Launched: ...

    def close(self) -> None: ...


class Runner:
    """Owns the weights and the pool of keys and values; `forward` writes the pool, nothing else does.

    The pool is [num_layers, num_slots, num_kv_heads, head_dim], keys as first rotated.
    """

    overlaps = False
    gates: LayerGates | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        group: ShardGroup | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """`model` is a slice of the whole where `group` are the shards that have the rest of it."""
        config = model.config
        self.group = group
        self.model = model.train(False)
        self.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size: int = config.vocab_size
        self.attention_backend = attention_backend(self.device, self.dtype)
        self.head_dim: int = head_dim(config)
        self.kinds, self.kind_of_layer = layer_kinds(model)
        model.set_attn_implementation(ATTENTION)
        num_kv_heads = local_num_kv_heads(model)
        shape = (config.num_hidden_layers, num_slots, num_kv_heads, self.head_dim)
        if self.device.type == "cpu" and self.dtype == torch.float32:
            compile_norms(model)
            compile_rotary(model, self.head_dim)
        if self.device.type == "cpu" and can_pack(self.dtype):
            pack_linears(model)
        self.adapters = adapters or Adapters()
        self.adapters.attach(model, group)
        if has_compiled_rows(self.device, self.dtype):
            compile_rows(local_num_heads(model), num_kv_heads, self.head_dim)
        self.k_pool = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.v_pool = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def launch(
        self,
        chunks: Sequence[Chunk],
        samplings: Sequence[Sampling],
        indices: Sequence[int],
        ask_masks: AskMasks | None = None,
    ) -> Launched:
        """Keys and values of `chunks` into the pool, and the next tokens of those that sample, in order: after the last
        token known, and each drafted one.

        Row i is token `indices[i]` of a call that samples by `samplings[i]`. With `ask_masks` some are constrained.
        """
        self.adapters.set_rows(chunks)
        batch = build_batch(chunks, self.kinds, self.dtype, self.device)
        num_sampled, rows = len(batch.logit_rows), scored_rows(chunks)
        if rows:
            batch = replace(batch, logit_rows=torch.cat((batch.logit_rows, batch.logit_rows.new_tensor(rows))))
        given = self.forward(batch)
        logits, scored = given[:num_sampled], given[num_sampled:]
        masks = None if ask_masks is None else ask_masks()
        tokens, sound = sample_rows(logits, sampling_params(samplings, indices, self.device, masks))
        samples = torch.stack((tokens, sound.to(tokens.dtype)))
        if self.group is not None and samples.numel():  # all shards go on with the first one's
            self.group.broadcast_(samples)
        return Launched(samples, logits, scored=scored)

    def close(self) -> None:
        """Nothing of it has to be ended. The runner on a card has more to do."""

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Computes the batch's keys and values into the pool; returns logits [num_sampled, vocab_size] in float32."""
        hidden: Tensor = self.model.base_model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            laban_runner=self,
            laban_batch=batch,
        ).last_hidden_state[0]
        if batch.logit_rows.numel() == 0:
            return hidden.new_empty(0, self.vocab_size, dtype=torch.float32)
        return logits_of(self.model, hidden.index_select(0, batch.logit_rows))


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """hidden [num_rows, hidden_size], the last layer's -> float32 [num_rows, vocab_size]"""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits: Tensor = head(hidden).float()
    cap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    return 2 * int(config.num_hidden_layers) * int(config.num_key_value_heads) * head_dim(config) * dtype.itemsize


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    laban_runner: Runner,
    laban_batch: Batch,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    k_pool, v_pool = laban_runner.k_pool[layer], laban_runner.v_pool[layer]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k_pool[laban_batch.write_slots] = k
    v_pool[laban_batch.write_slots] = v
    out = attend(q, k, v, k_pool, v_pool, laban_batch.plans[laban_runner.kind_of_layer[layer]], scaling)
    return out[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Visibility is the plan's, so transformers need not build a mask."""


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
