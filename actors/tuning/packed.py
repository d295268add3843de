"""A whole graph of messages in one differentiable forward: the definition of views, packed.

All messages are one sequence of rows, each with its own position. In a layer every message attends, by plain attention
over all that it sees at once, to its own tokens and to the rows of the messages that it reads, whose keys are turned
for where its view puts them. So a loss on what one message says is differentiated through the keys and values of all
that it read, of what those read, and so on: through the encodings as they are reused. Nothing is merged by log-sum-exp.
On a card, where many small products cost more than a large one, all messages of a small graph attend at once, masked.

Memory: activations of one layer, and with checkpoints [num_rows, hidden_size] a layer besides, for one graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
MAX_MASK = 1 << 28
"""Rows times keys of a graph whose messages attend at once on a card: the mask has a number for each, in the model's
dtype. A pack of 65,536 tokens has room for lessons of 4,096 keys each."""
SIZE_PART, LENGTH_PART = 8, 128


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
    """All messages at once; those that have nothing to do with each other side by side, those about as long together.
    The keys are those of all rows, and once more, turned, those of each message that is read elsewhere than where it
    was encoded; a mask says who sees which."""

    def __init__(self, packed: Packed, nodes: Sequence[Node], device: torch.device) -> None:
        self._packed, self._device = packed, device
        first = [0, *accumulate(len(node.tokens) for node in nodes)]
        end = first[-1]
        self._copies: dict[tuple[int, int], int] = {}  # (message, offset): the first of its keys
        for part, offset in (each for node in nodes for each in _offsets(node, nodes)):
            if offset and (part.message, offset) not in self._copies:
                self._copies[part.message, offset] = end
                end += len(nodes[part.message].tokens)
        alike: dict[int, list[list[int]]] = {}
        for numbers in _apart(nodes):
            alike.setdefault(sum(len(nodes[n].tokens) for n in numbers).bit_length(), []).append(numbers)
        self._stacks = [_Stack(nodes, first, self._copies, each, device) for each in alike.values()]
        self.mask_size = sum(stack.mask_size for stack in self._stacks)
        copied = [torch.arange(first[m], first[m + 1]) for m, _ in self._copies]
        source = torch.cat([torch.arange(first[-1]), *copied])  # the row of each key
        self._rows = source[first[-1] :].to(device)  # of each turned one
        self._sources = [source[stack.keys].to(device) for stack in self._stacks]
        self._lengths = torch.tensor([len(nodes[m].tokens) for m, _ in self._copies], dtype=torch.long)
        place, at = torch.zeros(first[-1], dtype=torch.long), 0  # of each row among those of all stacks
        for stack in self._stacks:
            real = stack.real
            place[stack.rows[real]] = at + real.nonzero().flatten()
            at += real.numel()
        self._place = place.to(device)
        self._tables: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        index = self._packed.kind_of_layer[layer]
        if self._copies:
            k = torch.cat([k, turn(k.index_select(0, self._rows), *self._turns(index, k.dtype))])
        group, out = q.shape[1] // k.shape[1], []
        for stack, sources in zip(self._stacks, self._sources, strict=True):
            keys, values = (
                # Repeated by hand: kernels that take a mask take no groups.
                x.index_select(0, rows).view(stack.size, -1, *x.shape[1:]).repeat_interleave(group, 2).transpose(1, 2)
                for x, rows in ((k, stack.keys_on), (v, sources))
            )
            queries = q.index_select(0, stack.rows_on).view(stack.size, -1, *q.shape[1:]).transpose(1, 2)
            mask = stack.mask(self._packed.kinds[index].window, q.dtype)
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
            out.append(found.transpose(1, 2).reshape(-1, *q.shape[1:]))
        return torch.cat(out).index_select(0, self._place)

    def _turns(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if (index, dtype) not in self._tables:
            back = torch.tensor([-offset for _, offset in self._copies]).repeat_interleave(self._lengths)
            inv_freq = self._packed.kinds[index].inv_freq
            self._tables[index, dtype] = turn_tables(back.to(self._device), inv_freq, dtype)
        return self._tables[index, dtype]


class _Stack:
    """Groups of messages, each a batch row of attention, as long as the longest: `rows` [size * num_rows] of the
    queries, `keys` [size * num_keys] among all keys, and `real` which rows are not just there to fill up.

    Sizes are round, so that few differ: cuDNN takes a tenth of a second to plan for a shape that is new.
    """

    def __init__(
        self, nodes: Sequence[Node], first: Sequence[int], copies: Mapping[tuple[int, int], int],
        groups: Sequence[Sequence[int]], device: torch.device,
    ) -> None:  # fmt: skip
        if len(groups) > SIZE_PART:  # the first one again, which changes nothing
            groups = [*groups, *[groups[0]] * (-len(groups) % SIZE_PART)]
        of_group: list[dict[tuple[int, int], int]] = []  # where the keys of each (message, offset) begin in the group
        sizes = []
        for group in groups:
            begins, at = {}, 0
            for number in group:
                begins[number, 0] = at
                at += len(nodes[number].tokens)
            num_rows = at
            for part, offset in (each for n in group for each in _offsets(nodes[n], nodes)):
                if (part.message, offset) not in begins:
                    begins[part.message, offset] = at
                    at += len(nodes[part.message].tokens)
            of_group.append(begins)
            sizes.append((num_rows, at))
        self.size, self._device = len(groups), device
        num_rows, num_keys = (-(-max(each) // LENGTH_PART) * LENGTH_PART for each in zip(*sizes, strict=True))
        num_nodes = max(map(len, groups))
        self.mask_size = self.size * num_rows * num_keys
        fill = torch.tensor([[first[group[0]]] for group in groups])
        rows, keys = fill.repeat(1, num_rows), fill.repeat(1, num_keys)
        row_of, key_of = torch.zeros(self.size, num_rows, dtype=torch.long), torch.full((self.size, num_keys), -1)
        self._row_at, self._key_at = torch.zeros_like(row_of), torch.zeros_like(key_of)  # positions
        seen = torch.zeros(self.size, num_nodes, num_keys, dtype=torch.bool)
        for b, (group, begins) in enumerate(zip(groups, of_group, strict=True)):
            local = {number: n for n, number in enumerate(group)}
            for (number, offset), at in begins.items():
                node = nodes[number]
                end = at + len(node.tokens)
                begin = first[number] if not offset else copies[number, offset]
                keys[b, at:end] = torch.arange(begin, begin + end - at)
                self._key_at[b, at:end] = torch.arange(node.start + offset, node.start + offset + end - at)
                if not offset:
                    rows[b, at:end] = keys[b, at:end]
                    row_of[b, at:end] = key_of[b, at:end] = local[number]
                    self._row_at[b, at:end] = self._key_at[b, at:end]
                for part, by in _offsets(node, nodes) if not offset else ():
                    there = begins[part.message, by]
                    seen[b, local[number], there + part.begin : there + part.end] = True
        self.rows, self.keys = rows.flatten(), keys.flatten()
        self.real = (torch.arange(num_rows) < torch.tensor([[rows] for rows, _ in sizes])).flatten()
        self.rows_on, self.keys_on = self.rows.to(device), self.keys.to(device)
        self._row_of, self._key_of, self._seen = row_of, key_of, seen
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[size, 1, num_rows, num_keys] to be added to scores, in a layer with a window without what is further behind.

        Of a boolean one every layer would make such a one for itself, and keep it for the gradient.
        """
        if (window, dtype) not in self._masks:
            row_of, key_of, seen = (x.to(self._device) for x in (self._row_of, self._key_of, self._seen))
            num_rows, num_keys = row_of.shape[1], key_of.shape[1]
            before = torch.ones(num_rows, num_keys, dtype=torch.bool, device=self._device).tril()
            own = (row_of[:, :, None] == key_of[:, None, :]) & before
            mask = seen.gather(1, row_of[:, :, None].expand(-1, -1, num_keys)) | own
            if window is not None:
                row_at, key_at = self._row_at.to(self._device), self._key_at.to(self._device)
                mask &= row_at[:, :, None] - key_at[:, None, :] < window
            unseen = torch.full((), -torch.inf, dtype=dtype, device=self._device)
            self._masks[window, dtype] = torch.where(mask, unseen.new_zeros(()), unseen)[:, None]
        return self._masks[window, dtype]


def _offsets(node: Node, nodes: Sequence[Node]) -> Iterator[tuple[Part, int]]:
    """What a message reads, each with how much further on its tokens are than they were encoded."""
    for part in node.view:
        yield part, part.position - nodes[part.message].start - part.begin


def _apart(nodes: Sequence[Node]) -> list[list[int]]:
    """The messages' numbers, in groups of which none reads another's."""
    group = list(range(len(nodes)))

    def root(number: int) -> int:
        while group[number] != number:
            group[number] = number = group[group[number]]
        return number

    for number, node in enumerate(nodes):
        for part in node.view:
            group[root(part.message)] = root(number)
    found: dict[int, list[int]] = {}
    for number in range(len(nodes)):
        found.setdefault(root(number), []).append(number)
    return list(found.values())


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
