"""Choosing what to encode again otherwise: as CacheBlend and EPIC do, in plain torch, or the view's last tokens.

Of a view each rule encodes as many tokens again as `blended` does. In plain torch a message is read with the keys
(rotation taken out) and values of its own encoding; some of its tokens are computed again where it is read, attending
to all that stands before them. For models of Llama's kind, one call at a time.

- CacheBlend (arXiv 2405.16444): the first layer of all tokens, then those whose values at the second deviate most.
- EPIC (arXiv 2410.15332): the first tokens of each message.
- The last tokens are a matter of views alone, and the engine's to encode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from inprocess import Story
from texts import generated_ids
from torch import Tensor, nn
from transformers import PreTrainedModel
from workloads import FlatStep

from laban.cluster.views import Entry

Choose = Callable[[Tensor, Tensor], Tensor | None]
"""Values of a message at a layer [num_tokens, num_kv_heads, head_dim], as computed here and as stored -> the rows to go
on with; None: with all, and to be asked again at the next layer."""

Rule = Callable[[float], Callable[[int], Choose]]
"""The choice at each layer, for a share of a message."""

ONE_LAYER = 1  # after which CacheBlend chooses


@dataclass(frozen=True, slots=True)
class Encoded:
    """keys (rotation taken out), values: [num_layers, num_tokens, num_kv_heads, head_dim]"""

    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor


Past = list[tuple[Encoded, int]]
"""What stands before, each with the position of its first token."""


def deviating(share: float) -> Callable[[int], Choose]:
    """CacheBlend's choice."""

    def of_layer(layer: int) -> Choose:
        def choose(found: Tensor, stored: Tensor) -> Tensor | None:
            if layer != ONE_LAYER:
                return None
            deviation = (found - stored).square().sum((1, 2))
            return deviation.topk(num_chosen(share, len(found))).indices.sort().values

        return choose

    return of_layer


def first(share: float) -> Callable[[int], Choose]:
    """EPIC's choice."""
    return lambda layer: lambda found, _: torch.arange(num_chosen(share, len(found))) if layer == 0 else None


def num_chosen(share: float, num_tokens: int) -> int:
    return max(1, math.ceil(share * num_tokens))


class PlainLlama:
    """`model` is transformers' own, in float32."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        config = model.config
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.inv_freq = model.base_model.rotary_emb.inv_freq.double()

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions.double()[:, None] * self.inv_freq
        cos, sin = (f(torch.cat((angles, angles), -1))[:, None].float() for f in (torch.cos, torch.sin))
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat((-other, one), -1) * sin

    @torch.inference_mode()
    def encode(
        self, tokens: tuple[int, ...], start: int, past: Past, stored: Encoded | None = None,
        choose: Callable[[int], Choose] | None = None,
    ) -> tuple[Encoded, Tensor]:  # fmt: skip
        """The message with the chosen rows computed here, the others as `stored`; and their last hidden states."""
        num_tokens = len(tokens)
        at, rows = torch.arange(start, start + num_tokens), torch.arange(num_tokens)
        hidden = self.model.get_input_embeddings()(torch.tensor(tokens))
        keys, values = [], []
        chosen = choose is None
        for number, layer in enumerate(self.model.base_model.layers):
            q, k, v = self._projected(layer, hidden)
            if not chosen and stored is not None and choose is not None:
                keep = choose(number)(v, stored.values[number])
                if keep is not None:
                    chosen, rows, hidden, q, k, v = True, keep, hidden[keep], q[keep], k[keep], v[keep]
            all_k, all_v = k, v
            if stored is not None and len(rows) < num_tokens:
                all_k, all_v = stored.keys[number].clone(), stored.values[number].clone()
                all_k[rows], all_v[rows] = k, v
            keys.append(all_k)
            values.append(all_v)
            before_k = [self._rotate(e.keys[number], torch.arange(p, p + len(e.tokens))) for e, p in past]
            seen_k = torch.cat([*before_k, self._rotate(all_k, at)])
            seen_v = torch.cat([*(e.values[number] for e, _ in past), all_v])
            visible = torch.ones(len(rows), len(seen_k), dtype=torch.bool)
            visible[:, len(seen_k) - num_tokens :] = torch.arange(num_tokens) <= rows[:, None]
            group = self.num_heads // self.num_kv_heads
            heads = (self._rotate(q, at[rows]), seen_k.repeat_interleave(group, 1), seen_v.repeat_interleave(group, 1))
            attended = nn.functional.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in heads), attn_mask=visible
            )[0]
            hidden = hidden + layer.self_attn.o_proj(attended.transpose(0, 1).flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return Encoded(tokens, torch.stack(keys), torch.stack(values)), hidden

    def _projected(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        shape = (len(hidden), -1, self.head_dim)
        return attention.q_proj(x).view(shape), attention.k_proj(x).view(shape), attention.v_proj(x).view(shape)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        found: Tensor = head(self.model.base_model.norm(hidden))
        return found


class LastTokens(Story):
    """A story in which the last tokens of each view are exact, a share of what is read, and the others direct."""

    def entries(self, step: FlatStep) -> list[Entry]:
        entries = [replace(entry, fidelity="direct") for entry in super().entries(step)]
        sizes = [entry.message.home.num_tokens for entry in entries]
        left, found = math.ceil(Fraction(str(self.recompute_share)) * sum(sizes)), []
        for entry, size in zip(reversed(entries), reversed(sizes), strict=True):
            tail = min(left, size)
            left -= tail
            if tail:
                found.append(replace(entry, fidelity="exact", begin=size - tail))
            if tail < size:
                found.append(replace(entry, end=size - tail))
        return found[::-1]


class PeerStory:
    """A workload's messages encoded by a peer's rule, or with no rule as `direct` does; texts are a `Story`'s."""

    def __init__(self, llama: PlainLlama, story: Story, rule: Rule | None, share: float = 0.0) -> None:
        self._llama, self._story, self._rule, self._share = llama, story, rule, share
        self._homes: dict[str, tuple[Encoded, tuple[tuple[int, ...], ...] | None]] = {}

    def force(self, step: FlatStep, generated: tuple[int, ...]) -> Tensor:
        """The logits of each generated token [tokens, vocab_size]. The story must have told the step."""
        messages, framing = self._story.book.messages, self._story.framing
        tokens = tuple(generated_ids(step, framing, generated))
        begin = len(framing.header(step.role, step.name, prefill=step.prefill)) - 1
        role = messages[step.reads[0]].role if step.reads else step.role
        root = tuple(framing.root(role))
        chain: tuple[tuple[int, ...], ...] | None = (root,)
        reads: list[tuple[tuple[int, ...], Encoded | None, bool]] = []  # text, if made so its encoding, if moved
        for index, key in enumerate(step.reads):
            message = messages[key]
            text = (message.first_tokens if index == 0 else ()) or message.home.tokens
            home, under = self._home(key)
            same = text == home.tokens
            if same and under != chain:
                chain = None  # from here on nothing stands where it was made
            reads.append((text, home if same else None, same and chain is None))
            chain = None if chain is None else (*chain, text)
        moved = sum(len(text) for text, _, is_moved in reads if is_moved)
        share = min(1.0, self._share * sum(len(text) for text, _, _ in reads) / moved) if moved else 0.0
        past: Past = [(self._llama.encode(root, 0, [])[0], 0)] if root else []
        at = len(root)
        for text, made, is_moved in reads:
            if made is None:
                made = self._llama.encode(text, at, past)[0]
            elif is_moved and self._rule is not None:
                made = self._llama.encode(text, at, past, made, self._rule(share))[0]
            past.append((made, at))
            at += len(text)
        home, hidden = self._llama.encode(tokens, at, past)
        self._homes[step.key] = home, chain
        return self._llama.logits(hidden[begin : begin + len(generated)])

    def _home(self, key: str) -> tuple[Encoded, tuple[tuple[int, ...], ...] | None]:
        """The message's own encoding, and the texts under which it was made, if each of these was exact."""
        if key not in self._homes:
            root = tuple(self._story.framing.root(self._story.book.messages[key].role))
            before: Past = [(self._llama.encode(root, 0, [])[0], 0)] if root else []
            tokens = self._story.book.messages[key].home.tokens
            self._homes[key] = self._llama.encode(tokens, len(root), before)[0], (root,)
        return self._homes[key]
