"""One shard's slice of a model, by the model's own tensor-parallel plan.

Query, key, value, gate and up projections keep the rows of their heads and features (a smaller `nn.Linear`), output
and down projections the matching columns, and add up what the shards have; the head keeps a range of the vocabulary
and gathers the logits. Embeddings and norms are whole on every shard. That is two all-reduces of
[num_tokens, hidden_size] a layer and one gather of the sampled rows' logits an iteration.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from laban.actors.engine.shard_group import ShardGroup
from laban.actors.errors import UnsupportedModel
from laban.actors.shards import heads_per_shard

_LOCAL_HEADS = "laban_local_heads"  # on a sliced model: (query heads, KV heads) of the shard


class RowParallelLinear(nn.Module):
    """A linear layer of which each shard has some columns: the outputs add up, the bias counts once.

    `linear` is the shard's [out_features, local_in_features], without the bias.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bias: Tensor | None, group: ShardGroup) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("bias", bias, persistent=False)
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """x [..., local_in_features], the shard's own -> [..., out_features], the same on every shard."""
        out = self._group.all_reduce(self.linear(x))
        return out if self.bias is None else out + self.bias


class VocabularyParallelHead(nn.Module):
    """Logits of the whole vocabulary, of which each shard computes as many; the last ones' are padded.

    `linear` is the shard's [ceil(vocab_size / num_shards), hidden_size].
    """

    def __init__(self, linear: nn.Linear, vocab_size: int, group: ShardGroup) -> None:
        super().__init__()
        self.linear = linear
        self._vocab_size = vocab_size
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> [..., vocab_size], the same bits on every shard."""
        logits = self._group.all_gather_last_dim(self.linear(x).flatten(0, -2))
        return logits[:, : self._vocab_size].reshape(*x.shape[:-1], self._vocab_size)


@torch.no_grad()
def shard_model(model: PreTrainedModel, group: ShardGroup) -> None:
    """Cuts `model`, loaded whole on the CPU, down to this shard's slice and moves that to the group's device, in place.

    transformers maps weights from their files when they have the wanted dtype, so a shard reads and holds only its
    slices, and what is whole on every shard; of another dtype, the whole model is converted in memory first.
    Raises InvalidInput where the heads do not divide, UnsupportedModel for a model without a plan that is known here.
    """
    whole: Any = model  # its own types know little
    config, base = whole.config, whole.base_model
    num_heads, num_kv_heads = heads_per_shard(config.num_attention_heads, config.num_key_value_heads, group.size)
    styles = _styles(model)
    for name, module in list(base.named_modules()):
        style = next((style for pattern, style in styles.items() if fnmatchcase(name, pattern)), "replicated")
        if isinstance(module, nn.Linear) and not style.startswith("replicated"):
            parent, _, own_name = name.rpartition(".")
            setattr(base.get_submodule(parent), own_name, _slice(own_name, module, style, config, group))
    for layer in base.layers:
        layer.self_attn.num_key_value_groups = num_heads // num_kv_heads
    setattr(model, _LOCAL_HEADS, (num_heads, num_kv_heads))
    head = whole.get_output_embeddings()
    tied = head.weight is whole.get_input_embeddings().weight
    whole.set_output_embeddings(nn.Identity())  # only its slice goes to the device
    whole.to(group.device)
    if tied:
        head.weight = whole.get_input_embeddings().weight
    whole.set_output_embeddings(_slice_head(head, tied, group))


def local_num_heads(model: PreTrainedModel) -> int:
    """Query heads that `model` computes: a shard's, or all of them."""
    heads: tuple[int, int] | None = getattr(model, _LOCAL_HEADS, None)
    return int(model.config.num_attention_heads) if heads is None else heads[0]


def local_num_kv_heads(model: PreTrainedModel) -> int:
    """KV heads of which `model` makes keys and values: a shard's, or all of them."""
    heads: tuple[int, int] | None = getattr(model, _LOCAL_HEADS, None)
    return int(model.config.num_key_value_heads) if heads is None else heads[1]


def _styles(model: PreTrainedModel) -> dict[str, str]:
    """The plan of the model without its head: names with wildcards, and how each is cut."""
    plan: dict[str, str] = dict(getattr(model.config, "base_model_tp_plan", None) or {})
    plan = {name: style for name, style in plan.items() if style != "embedding_rowwise"}  # embeddings stay whole
    unknown = [style for style in plan.values() if style not in ("colwise", "rowwise") and style[:10] != "replicated"]
    if unknown or not plan:
        reason = f"asks for {unknown[0]}, which is not known here" if unknown else "is missing"
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be cut into shards: its tensor-parallel plan {reason}",
            field="engine.shards",
        )
    return plan


def _kept(own_name: str, num_features: int, config: Any, group: ShardGroup) -> slice:
    """The features of a layer that is cut which are this shard's."""
    num_parts = group.size
    if own_name in ("k_proj", "v_proj"):  # shards whose query heads use the same KV head have it each
        num_parts = min(group.size, config.num_key_value_heads)
    part = group.rank * num_parts // group.size
    return slice(num_features * part // num_parts, num_features * (part + 1) // num_parts)


def slice_factors(model: PreTrainedModel, name: str, a: Tensor, b: Tensor, group: ShardGroup) -> tuple[Tensor, Tensor]:
    """This shard's part of an adapter's factors a [rank, in_features], b [out_features, rank] in the layer `name` of
    the base model: what its slice of the weight needs. Those of a layer that is whole on every shard stay so."""
    styles = _styles(model)
    style = next((style for pattern, style in styles.items() if fnmatchcase(name, pattern)), "replicated")
    if style.startswith("replicated"):
        return a, b
    own_name = name.rpartition(".")[2]
    if style == "rowwise":  # what the shards have adds up, and so do the products with their columns of a
        return a[:, _kept(own_name, a.shape[1], model.config, group)], b
    return a, b[_kept(own_name, b.shape[0], model.config, group)]


def _slice(own_name: str, linear: nn.Linear, style: str, config: Any, group: ShardGroup) -> nn.Module:
    kept = _kept(own_name, linear.in_features if style == "rowwise" else linear.out_features, config, group)
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    if style == "rowwise":
        return RowParallelLinear(_linear(_copy(weight[:, kept], group)), bias, group)
    return _linear(_copy(weight[kept], group), None if bias is None else _copy(bias[kept], group))


def _slice_head(head: nn.Linear, tied: bool, group: ShardGroup) -> VocabularyParallelHead:
    """A tied head's slice is a view of the embedding, unless it has to be padded."""
    if head.bias is not None:
        raise UnsupportedModel("a head with a bias cannot be cut into shards", field="engine.shards")
    num_rows = -(-head.out_features // group.size)
    weight = head.weight.detach()[group.rank * num_rows : (group.rank + 1) * num_rows]
    if missing := num_rows - weight.shape[0]:
        weight = pad(weight, (0, 0, 0, missing))
    if not tied:
        weight = _copy(weight, group)
    return VocabularyParallelHead(_linear(weight.to(group.device)), head.out_features, group)


def _copy(part: Tensor, group: ShardGroup) -> Tensor:
    """On the group's device, and no longer a view of the whole."""
    return part.to(group.device, copy=True).contiguous()


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
