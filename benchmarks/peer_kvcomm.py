"""KVCOMM (arXiv 2510.12872) as it was published: its gate and its weights, over our engine's pool and store.

Written after the paper's description. An *anchor* of a slot is a message that was read there before: its encoding
alone (the base), and what it was under each reader's view. Slots, rotation and storage are those of everything here;
the paper's is when a message is accepted (`accepts`) and how what is added to it is weighed (`token_weights`):

- accepted is a message whose distances to the anchors, the Euclidean norms of all values' differences, have a
  softmax (of their negatives) with an entropy of at most `gamma` times the logarithm of their number. Fewer than two
  anchors that are as long accept nothing.
- added is the mean deviation of *all* anchors that are as long, weighted for each token by the softmax of negative mean
  absolute differences, keys and values apart, layers, heads and channels together. The first layer gets nothing.
- a call is dense unless all that it reads is accepted. Of more than 20 anchors the least used of the five oldest goes.

Two things are better than published: deviations of keys are aligned to positions, and a pool's entry is kept by its
tokens, so that nothing is lost when calls overlap. Nothing here stands after a slot but the call's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from flat import FlatStep
from paper_stage import Script, Stage, now_s, play
from torch import Tensor

from laban.actors.engine.layers import layer_kinds
from laban.cluster.views import Composed, Entry, Message
from laban.kernels.fused_ops import rotate_reference
from laban.kvstore.encodings import EMPTY_VIEW, EncodingId, EncodingSpec, Placement, extend, flatten, make_spec
from laban.kvstore.store import Entry as Stored

GAMMA, MAX_ANCHORS, WINDOW, TOP_P = 0.3, 20, 5, 0.9
LAYERS_AT_ONCE = 4
"""On a CPU, so that they stay in its caches; on a card all at once, as its launches cost more."""
MARK = 1.0
"""The tolerance in the ids of what is predicted here: never taken for exact."""


def gate_weights(distances: Tensor) -> Tensor:
    """[num_anchors] norms of differences -> softmax of their negatives, temperature 1."""
    return torch.softmax(-distances.double(), 0)


def accepts(distances: Tensor, gamma: float) -> bool:
    """Of the anchors that are as long as the message [num_anchors]."""
    count = distances.numel()
    if count < 2:
        return False
    weights = gate_weights(distances)
    entropy = -(weights * torch.log2(weights + 1e-40)).sum()
    return bool(entropy <= gamma * torch.log2(torch.tensor(float(count))))


def nucleus(distances: Tensor, top_p: float = TOP_P) -> list[int]:
    """The anchors that count as used: the nearest whose weights add up to less than `top_p`; all, if there is none."""
    weights, order = gate_weights(distances).sort(descending=True)
    found = order[weights.cumsum(0) < top_p].tolist()
    return found or list(range(distances.numel()))


def token_weights(distances: Tensor) -> Tensor:
    """[num_anchors, num_tokens] mean absolute differences -> weights that add up to 1 for each token."""
    return torch.softmax(-distances.float(), 0)


@dataclass(slots=True, eq=False)
class Anchor:
    base: EncodingSpec
    trues: dict[str, EncodingSpec] = field(default_factory=dict)  # by reader
    num_uses: int = 0


@dataclass(slots=True)
class Pool:
    """A slot's anchors, the oldest first."""

    anchors: list[Anchor] = field(default_factory=list)

    def add(self, anchor: Anchor) -> Anchor | None:
        """What goes for it."""
        gone = None
        if len(self.anchors) >= MAX_ANCHORS:
            gone = min(self.anchors[:WINDOW], key=lambda each: each.num_uses)
            self.anchors.remove(gone)
        self.anchors.append(anchor)
        return gone


@dataclass(frozen=True, slots=True)
class Weighed:
    """A message of this run beside its slot's anchors: weights of keys' and of values' deviations."""

    anchors: list[Anchor]
    accepted: bool
    of_keys: Tensor  # [num_anchors, num_tokens]
    of_values: Tensor


@dataclass(slots=True)
class KvcommStage(Stage):
    """`gamma` 0 accepts nothing (so pools fill), 1 whatever there are two anchors for."""

    gamma: float = GAMMA
    pools: dict[str, Pool] = field(default_factory=dict)  # by slot: the key of the message that fills it
    num_asked: int = 0
    num_accepted: int = 0
    num_calls: int = 0
    num_reusing: int = 0  # calls of which all reads were accepted
    matching_s: float = 0.0
    _weighed: dict[str, Weighed] = field(default_factory=dict)
    _fresh: dict[str, Anchor] = field(default_factory=dict)
    _views: dict[str, Composed] = field(default_factory=dict)  # by step
    _held: dict[EncodingId, Tensor] = field(default_factory=dict)  # slots of anchors, which stay where they are

    def give(self, script: Script) -> None:
        Stage.give(self, script)
        self._weighed, self._fresh, self._views = {}, {}, {}

    def compose(self, script: Script, step: FlatStep) -> Composed:
        """Once for a step: matched, and mixed if all of it is accepted."""
        if step.key not in self._views:
            self._views[step.key] = self._decided(step)
        return self._views[step.key]

    def _decided(self, step: FlatStep) -> Composed:
        prompt = [key for key in step.reads if key == step.prompt]
        slots = [key for key in step.reads if key != step.prompt]
        began = now_s()
        accepted = [self._weigh(key).accepted for key in slots]  # not all(): each is asked
        self.matching_s += now_s() - began
        reuses = (
            bool(slots) and all(accepted) and all(step.key in a.trues for k in slots for a in self._weigh(k).anchors)
        )
        self.num_calls += 1
        self.num_reusing += reuses
        if not reuses:
            found = self._composed([self._entry(key) for key in step.reads])
            self._learn(step, slots, [key for key in slots if not self._weighed[key].accepted], found)
            return found
        view, at = EMPTY_VIEW, 0
        for key in (*prompt, *slots):
            spec = self.homes[key]
            if key in slots:
                spec = self._known(make_spec(self.namespace, spec.tokens, at, view, self.specs, tolerance=MARK))
                if self.engine.store.get(spec.encoding_id) is None:
                    self._make(spec, key, step.key)
            view = extend(view, Placement(spec.encoding_id, at, 0, spec.num_tokens), self.specs)
            at += spec.num_tokens
        return Composed(view, at, {}, (), False)

    def commit(self) -> None:
        """The run is over: what it read densely are anchors now."""
        for key, anchor in self._fresh.items():
            self._hold([anchor.base, *anchor.trues.values()])
            gone = self.pools.setdefault(key, Pool()).add(anchor)
            if gone is not None:
                self._release([gone.base, *gone.trues.values()])
        self._fresh = {}

    def _entry(self, key: str) -> Entry:
        return Entry(Message("user", self.homes[key]), "exact")

    def _learn(self, step: FlatStep, slots: Sequence[str], flagged: Sequence[str], found: Composed) -> None:
        """Its dense reads are going to be encoded: under their own views, one placement each."""
        placed = flatten(found.view, self.specs)[-len(slots) :] if slots else []
        for key, placement in zip(slots, placed, strict=True):
            if key in flagged:
                anchor = self._fresh.setdefault(key, Anchor(self.homes[key]))
                anchor.trues[step.key] = self.specs[placement.encoding_id]

    def _weigh(self, key: str) -> Weighed:
        """Once for a message. The base is encoded if it is not yet: it is of the call that reads it first."""
        found = self._weighed.get(key)
        if found is not None:
            return found
        base = self.homes[key]
        pool = self.pools.get(key, Pool())
        anchors = [anchor for anchor in pool.anchors if anchor.base.num_tokens >= base.num_tokens]
        if self.engine.store.get_ready(base.encoding_id) is None:
            play(self.engine, [self.call(base.view, base.start, base.tokens)])
        of_keys, of_values, distances = self._distances(base, anchors)
        accepted = self.gamma > 0 and (len(anchors) > 1 if self.gamma >= 1 else accepts(distances, self.gamma))
        if accepted:
            for index in nucleus(distances):
                anchors[index].num_uses += 1
        self.num_asked += 1
        self.num_accepted += accepted
        found = Weighed(anchors, accepted, token_weights(of_keys), token_weights(of_values))
        self._weighed[key] = found
        return found

    @torch.inference_mode()
    def _distances(self, base: EncodingSpec, anchors: Sequence[Anchor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean absolute differences of keys and of values [num_anchors, num_tokens], norms of values' [num_anchors]."""
        runner, count = self.engine.runner, base.num_tokens
        device = runner.k_pool.device
        of_keys, of_values = (torch.zeros(len(anchors), count, device=device) for _ in range(2))
        squares = torch.zeros(len(anchors), dtype=torch.float64, device=device)
        own, slots = self._slots(base, count), [self._slots(anchor.base, count) for anchor in anchors]
        for keys, values in self._layers():
            own_k, own_v = keys[:, own].float(), values[:, own].float()
            for row, (anchor, at) in enumerate(zip(anchors, slots, strict=True)):
                away_k = self._moved(keys[:, at], base.start - anchor.base.start) - own_k
                away_v = values[:, at] - own_v
                of_keys[row] += away_k.abs().sum((0, 2, 3))
                of_values[row] += away_v.abs().sum((0, 2, 3))
                squares[row] += away_v.square().sum().double()
        channels = runner.k_pool[:, 0].numel()
        return of_keys / channels, of_values / channels, squares.sqrt()

    @torch.inference_mode()
    def _make(self, spec: EncodingSpec, key: str, reader: str) -> None:
        """The base plus the anchors' weighted deviations, in pages of its own: an encoding in the store."""
        store, weighed, base = self.engine.store, self._weighed[key], self.homes[key]
        count = spec.num_tokens
        entry = store.reserve(spec.encoding_id, count, spec.namespace)
        own, target = self._slots(base, count), self._rows(entry, count)
        pairs = [(anchor.base, anchor.trues[reader]) for anchor in weighed.anchors]
        slots = [(self._slots(b, count), self._slots(t, count)) for b, t in pairs]
        of_keys, of_values = (w[:, None, :, None, None] for w in (weighed.of_keys, weighed.of_values))
        for number, (keys, values) in enumerate(self._layers()):
            away_k, away_v = keys[:, own].float(), values[:, own].float()
            base_k, base_v = self._moved(away_k[0:1], spec.start - base.start).clone(), away_v[0:1].clone()
            true_k, true_v = torch.zeros_like(away_k), torch.zeros_like(away_v)
            for row, ((b, t), (b_at, t_at)) in enumerate(zip(pairs, slots, strict=True)):
                away_k.addcmul_(of_keys[row], self._moved(keys[:, b_at], base.start - b.start), value=-1)
                away_v.addcmul_(of_values[row], values[:, b_at], value=-1)
                true_k.addcmul_(of_keys[row], self._moved(keys[:, t_at], spec.start - t.start))
                true_v.addcmul_(of_values[row], values[:, t_at])
            mixed_k = true_k + self._moved(away_k, spec.start - base.start)  # weights are of tokens, as rotation is
            mixed_v = true_v + away_v
            if number == 0:
                mixed_k[0], mixed_v[0] = base_k[0], base_v[0]
            keys[:, target], values[:, target] = mixed_k.to(keys.dtype), mixed_v.to(values.dtype)
        if target.is_cuda:
            torch.cuda.synchronize(target.device)
        store.publish(entry, spec.encoding_id, count, spec)
        store.unpin(entry)

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of some layers at a time, from the first on."""
        keys, values = self.engine.runner.k_pool, self.engine.runner.v_pool
        size = len(keys) if keys.is_cuda else LAYERS_AT_ONCE
        return zip(keys.split(size), values.split(size), strict=True)

    def _moved(self, keys: Tensor, offset: int) -> Tensor:
        """[num_layers, num_tokens, num_kv_heads, head_dim], all of which rotate alike"""
        if offset == 0:
            return keys
        (kind,) = layer_kinds(self.engine.runner.model)[0]
        angles = (offset * kind.inv_freq.double()).expand(keys.shape[0] * keys.shape[1], -1)
        return rotate_reference(keys.flatten(0, 1), angles.cos().float(), angles.sin().float()).view(keys.shape)

    def _slots(self, spec: EncodingSpec, count: int) -> Tensor:
        if (held := self._held.get(spec.encoding_id)) is not None:
            return held[:count]
        entry = self.engine.store.get_ready(spec.encoding_id)
        if entry is None:
            raise RuntimeError("an anchor was evicted: the pool is too small for this benchmark")
        return self._rows(entry, count)

    def _rows(self, entry: Stored, count: int) -> Tensor:
        return torch.tensor(entry.slots(count), device=self.engine.runner.k_pool.device)

    def _hold(self, specs: Sequence[EncodingSpec]) -> None:
        for spec in specs:
            entry = self.engine.store.get_ready(spec.encoding_id)
            if entry is None:
                raise RuntimeError("an anchor was evicted: the pool is too small for this benchmark")
            self.engine.store.pin(entry)
            self._held[spec.encoding_id] = self._rows(entry, spec.num_tokens)

    def _release(self, specs: Sequence[EncodingSpec]) -> None:
        for spec in specs:
            entry = self.engine.store.get_ready(spec.encoding_id)
            assert entry is not None
            self.engine.store.unpin(entry)
            self._held.pop(spec.encoding_id, None)

    def drop(self) -> None:
        """Its anchors may be evicted from now on."""
        for pool in self.pools.values():
            for anchor in pool.anchors:
                self._release([anchor.base, *anchor.trues.values()])
        self.pools = {}
