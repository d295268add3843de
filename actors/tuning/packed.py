"""A whole graph of messages in one differentiable forward: the definition of views, packed.

All messages are one sequence of rows, each with its own position. In a layer every message attends, by plain attention
over all that it sees at once, to its own tokens and to the rows of the messages that it reads, whose keys are turned
for where its view puts them. So a loss on what one message says is differentiated through the keys and values of all
that it read, of what those read, and so on: through the encodings as they are reused. Nothing is merged by log-sum-exp.
On a card, where many small products cost more than a large one, all messages of a small graph attend at once, masked.

Memory: activations of one layer, and with checkpoints [num_rows, hidden_size] a layer besides, for one graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from laban.actors.engine.layers import LayerKind, layer_kinds
from laban.actors.tuning.lessons import Graph, Node, Part
from laban.kernels.rotary import turn, turn_tables

ATTENTION = "laban_packed"
MAX_MASK = 1 << 24
"""Rows times keys of a graph whose messages attend at once on a card: the mask has a byte for each."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Rows [begin, end) of a message, `offset` positions further on than they were encoded."""

    message: int
    begin: int
    end: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Block:
    """A message's rows, and what they read."""

    num_rows: int
    reads: tuple[_Read, ...]
    masks: dict[int, Tensor | None] = field(default_factory=dict)  # by kind of layer; None: nothing but causal


class Packed:
    """A model, prepared once, and graphs laid out for it. The model is left as it is but for its attention function."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.max_mask = MAX_MASK if model.device.type == "cuda" else 0
        self.kinds, self.kind_of_layer = layer_kinds(model)
        model.set_attn_implementation(ATTENTION)

    def hidden(self, graph: Graph) -> Tensor:
        """The last layer's [num_tokens, hidden_size], message after message."""
        device = self.model.device
        tokens = [token for node in graph.nodes for token in node.tokens]
        positions = [node.start + i for node in graph.nodes for i in range(len(node.tokens))]
        dense = DenseLayout(self, graph.nodes, device)
        layout: Layout = dense if dense.mask_size <= self.max_mask else BlockLayout(self, graph.nodes, device)
        out = self.model.base_model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            laban_layout=layout,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden


class Layout(Protocol):
    """One graph: who attends to which rows, and by how much keys are turned."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [num_rows, num_heads, head_dim], k, v [num_rows, num_kv_heads, head_dim], rotated -> as q."""


class BlockLayout:
    """Message by message: no key is looked at that is not seen."""

    def __init__(self, packed: Packed, nodes: Sequence[Node], device: torch.device) -> None:
        self._packed, self._device = packed, device
        self._turns: dict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.blocks = []
        for node in nodes:
            reads = tuple(
                _Read(part.message, part.begin, part.end, part.position - nodes[part.message].start - part.begin)
                for part in node.view
            )
            block = _Block(len(node.tokens), reads)
            for index, kind in enumerate(packed.kinds):
                block.masks[index] = _mask(node, block, kind).to(device)
            self.blocks.append(block)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        index = self._packed.kind_of_layer[layer]
        out = []
        # Split once: a slice's gradient is as large as what it is of.
        queries, keys_of, values_of = (torch.split(x, [block.num_rows for block in self.blocks]) for x in (q, k, v))
        for number, block in enumerate(self.blocks):
            keys = [self._turned(_part(keys_of, read), index, read.offset) for read in block.reads]
            values = [_part(values_of, read) for read in block.reads]
            out.append(
                functional.scaled_dot_product_attention(
                    queries[number][None].transpose(1, 2),
                    torch.cat([*keys, keys_of[number]])[None].transpose(1, 2),
                    torch.cat([*values, values_of[number]])[None].transpose(1, 2),
                    attn_mask=block.masks[index],
                    scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )[0].transpose(0, 1)
            )
        return torch.cat(out)

    def _turned(self, keys: Tensor, index: int, offset: int) -> Tensor:
        if offset == 0:
            return keys
        key = index, offset, keys.dtype
        if key not in self._turns:
            back = torch.tensor([-offset], device=self._device)  # the tables are of turns back
            self._turns[key] = turn_tables(back, self._packed.kinds[index].inv_freq, keys.dtype)
        return turn(keys, *self._turns[key])


class DenseLayout:
    """All messages at once. The keys are those of all rows, and once more, turned, those of each message that is read
    elsewhere than where it was encoded; a mask says who sees which."""

    def __init__(self, packed: Packed, nodes: Sequence[Node], device: torch.device) -> None:
        self._packed, self._nodes, self._device = packed, nodes, device
        self._first = [0, *accumulate(len(node.tokens) for node in nodes)]
        self._num_rows = end = self._first[-1]
        self._copies: dict[tuple[int, int], int] = {}  # (message, offset): the first of its keys
        for part, offset in (each for node in nodes for each in self._reads(node)):
            if offset and (part.message, offset) not in self._copies:
                self._copies[part.message, offset] = end
                end += len(nodes[part.message].tokens)
        self.mask_size = self._num_rows * end
        self._num_keys = end
        self._masks: dict[int, Tensor] = {}
        self._tables: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._rows: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        index = self._packed.kind_of_layer[layer]
        if self._copies:
            rows = self._copied()
            k, v = torch.cat([k, turn(k[rows], *self._turns(index, k.dtype))]), torch.cat([v, v[rows]])
        if index not in self._masks:
            self._masks[index] = self._mask(self._packed.kinds[index]).to(self._device)
        group = q.shape[1] // k.shape[1]  # repeated by hand: kernels that take a mask take no groups
        keys, values = (x.repeat_interleave(group, 1)[None].transpose(1, 2) for x in (k, v))
        queries, mask = q[None].transpose(1, 2), self._masks[index]
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
        return out[0].transpose(0, 1)

    def _reads(self, node: Node) -> Iterator[tuple[Part, int]]:
        """Each with how much further on its tokens are than they were encoded."""
        for part in node.view:
            yield part, part.position - self._nodes[part.message].start - part.begin

    def _copied(self) -> Tensor:
        """The row of each turned key."""
        if self._rows is None:
            copied = [torch.arange(self._first[m], self._first[m + 1]) for m, _ in self._copies]
            self._rows = torch.cat(copied).to(self._device)
        return self._rows

    def _turns(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if (index, dtype) not in self._tables:
            lengths = torch.tensor([len(self._nodes[m].tokens) for m, _ in self._copies], device=self._device)
            back = torch.tensor([-offset for _, offset in self._copies], device=self._device)
            inv_freq = self._packed.kinds[index].inv_freq
            self._tables[index, dtype] = turn_tables(back.repeat_interleave(lengths), inv_freq, dtype)
        return self._tables[index, dtype]

    def _mask(self, kind: LayerKind) -> Tensor:
        """[num_rows, num_keys], in a layer with a window without what is further behind."""
        seen = torch.zeros(self._num_rows, self._num_keys, dtype=torch.bool)
        for number, node in enumerate(self._nodes):
            begin, end = self._first[number : number + 2]
            own = torch.arange(node.start, node.start + end - begin)
            seen[begin:end, begin:end] = _within(own, own, kind).tril()
            for part, offset in self._reads(node):
                first = self._copies[part.message, offset] if offset else self._first[part.message]
                places = torch.arange(part.position, part.position + part.end - part.begin)
                seen[begin:end, first + part.begin : first + part.end] |= _within(own, places, kind)
        return seen


def _within(own: Tensor, places: Tensor, kind: LayerKind) -> Tensor:
    """[num_own, num_places] of what a window lets through."""
    behind = own[:, None] - places[None, :]
    return torch.ones_like(behind, dtype=torch.bool) if kind.window is None else behind < kind.window


def _part(parts: Sequence[Tensor], read: _Read) -> Tensor:
    whole = parts[read.message]
    return whole if (read.begin, read.end) == (0, whole.shape[0]) else whole[read.begin : read.end]


def _mask(node: Node, block: _Block, kind: LayerKind) -> Tensor:
    """[num_rows, num_keys] of what is seen: all that is read and what is before, and in a layer with a window only what
    is less than that behind."""
    num_rows = len(node.tokens)
    num_read = sum(read.end - read.begin for read in block.reads)
    seen = torch.ones(num_rows, num_read + num_rows, dtype=torch.bool)
    seen[:, num_read:].tril_()
    if kind.window is not None:
        own = torch.arange(node.start, node.start + num_rows)
        places = [torch.arange(part.position, part.position + part.end - part.begin) for part in node.view]
        seen &= own[:, None] - torch.cat([*places, own])[None, :] < kind.window
    return seen


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float, laban_layout: Layout, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: query [1, heads, rows, dim], key and value [1, kv_heads, rows, dim]."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return laban_layout.attend(module.layer_idx, q, k, v, scaling)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
