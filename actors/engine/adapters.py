"""Low-rank adapters in the layers of a model that is prepared for serving: cut, merged, packed, in any way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from laban.actors.adapter_folder import PREFIX, WEIGHTS, check_adapter_folder
from laban.actors.engine.sequence import Chunk
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.sharding import RowParallelLinear, slice_factors
from laban.kernels.lora import AdapterRows, Factors, LoraLinear, merged
from laban.kernels.merged_linear import GATE_UP, GatedMLP, ProductPart

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adapter:
    """`layers`: factors (a [rank, in_features], b [out_features, rank], scaled) by the layer's path in the base model,
    such as layers.0.self_attn.q_proj. On the CPU, of the whole layer."""

    fingerprint: str
    layers: dict[str, tuple[Tensor, Tensor]]


def load_adapter(folder: str | Path, model_folder: str | Path) -> Adapter:
    """Raises what `check_adapter_folder` does."""
    facts = check_adapter_folder(folder, model_folder)
    tensors = load_file(facts.folder / WEIGHTS)
    layers = {}
    for module, rank in facts.ranks.items():
        a, b = (tensors[f"{PREFIX}{module}.lora_{factor}.weight"].float() for factor in "AB")
        layers[module.removeprefix("model.")] = (a, b * facts.scale(rank))
    return Adapter(facts.fingerprint, layers)


class Adapters:
    """Those of one model, and which of them each row of a batch has."""

    def __init__(self, adapters: Sequence[Adapter] = ()) -> None:
        # The same adapter under two names is one.
        self._adapters = list({each.fingerprint: each for each in adapters}.values())
        self._numbers = {each.fingerprint: number for number, each in enumerate(self._adapters)}
        self._numbers[""] = -1
        self._rows = AdapterRows()

    def __bool__(self) -> bool:
        return bool(self._adapters)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(each.fingerprint for each in self._adapters)

    @torch.no_grad()
    def attach(self, model: PreTrainedModel, group: ShardGroup | None, numbers: Tensor | None = None) -> None:
        """Puts them into `model`, once nothing else is done to its layers.

        `group` as in `shard_model`; `numbers` as in AdapterRows.
        """
        self._rows.numbers = numbers
        found: dict[str, dict[int, Factors]] = {}
        for number, adapter in enumerate(self._adapters):
            for name, factors in adapter.layers.items():
                a, b = factors if group is None else slice_factors(model, name, *factors, group)
                own = Factors(*(x.to(model.device, model.dtype) for x in (a, b)))
                found.setdefault(name, {})[number] = own
        parents: dict[str, dict[str, dict[int, Factors]]] = {}
        for name, by_adapter in found.items():
            parent, _, own_name = name.rpartition(".")
            parents.setdefault(parent, {})[own_name] = by_adapter
        for path, children in parents.items():
            self._attach_to(model.base_model.get_submodule(path), children)
        if self._adapters:
            log.info("%d adapters, in %d layers", len(self._adapters), len(found))

    def numbers_of(self, chunks: Sequence[Chunk]) -> list[int]:
        """Of the batch's rows, in order."""
        return [self._numbers[chunk.sequence.adapter] for chunk in chunks for _ in range(chunk.count)]

    def set_rows(self, chunks: Sequence[Chunk]) -> None:
        """Of a batch off a card."""
        if self._adapters:
            self._rows.set(self.numbers_of(chunks))

    def knows(self, fingerprint: str) -> bool:
        return fingerprint in self._numbers

    def _attach_to(self, parent: Any, children: dict[str, dict[int, Factors]]) -> None:
        """To an attention or an MLP; layers that were merged into one product get theirs merged too."""
        products: dict[int, tuple[Any, dict[int, dict[int, Factors]]]] = {}  # parts by adapter and place
        for name, by_adapter in children.items():
            owner, place = _product_of(parent, name)
            if owner is None:
                child = getattr(parent, name)
                at, attribute = (child, "linear") if isinstance(child, RowParallelLinear) else (parent, name)
                setattr(at, attribute, self._wrapped(getattr(at, attribute), by_adapter))
                continue
            parts = products.setdefault(id(owner), (owner, {}))[1]
            for number, factors in by_adapter.items():
                parts.setdefault(number, {})[place] = factors
        for owner, parts in products.values():
            is_mlp = isinstance(owner, GatedMLP)
            sizes = [owner.gate_up_proj.out_features // 2] * 2 if is_mlp else owner.sizes
            whole = {
                number: merged([places.get(place) for place in range(len(sizes))], sizes)
                for number, places in parts.items()
            }
            attribute = "gate_up_proj" if is_mlp else "linear"
            setattr(owner, attribute, self._wrapped(getattr(owner, attribute), whole))

    def _wrapped(self, layer: nn.Module, by_adapter: dict[int, Factors]) -> LoraLinear:
        return LoraLinear(layer, by_adapter, len(self._adapters), self._rows)


def _product_of(parent: Any, name: str) -> tuple[Any, int]:
    """What the layer `name` was merged into, and its place there; None if it is one by itself."""
    if isinstance(parent, GatedMLP) and name in GATE_UP:
        return parent, GATE_UP.index(name)
    child = getattr(parent, name)
    return (child.product, child.index) if isinstance(child, ProductPart) else (None, 0)
