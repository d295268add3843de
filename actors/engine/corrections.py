"""Encodings that may be predicted from others of the same tokens, instead of being encoded.

The pool (`kvstore/anchors.py`) says from which, or that nothing is known to be good enough. Then it is encoded as any
other, and becomes an anchor itself. What was predicted is marked here: it is nobody's anchor, never leaves the device
(to predict it again is one copy), and its error counts against what comes after it in the same view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from laban.actors.engine.layers import layer_kinds
from laban.actors.engine.runner import AnyRunner
from laban.actors.engine.tallying import Tallying
from laban.kernels.mixed_copy import copy_mixed
from laban.kvstore.anchors import MAX_ANCHORS, Anchor, AnchorPool, Mix
from laban.kvstore.encodings import EncodingId, EncodingSpec, flatten, make_spec
from laban.kvstore.store import EncodingStore, Entry
from laban.kvstore.surroundings import Surroundings, surroundings

TRIAL = math.inf
"""The tolerance of what is predicted to see how wrong it is: any error, and not from the one under its own view."""
SAMPLED_LAYERS, SAMPLED_TOKENS = 4, 32

Specs = dict[EncodingId, EncodingSpec]
NOTHING: Mapping[EncodingId, Mix] = {}


class Corrections:
    """Owned by the engine's thread. A worker of several shards predicts nothing: each would decide by its own heads."""

    def __init__(
        self, runner: AnyRunner, store: EncodingStore, tallying: Tallying, pool: AnchorPool | None = None
    ) -> None:
        self.pool = AnchorPool() if pool is None else pool
        self._runner, self._store, self._tallying = runner, store, tallying
        self._serves = runner.group is None
        self._kinds, self._kind_of_layer = layer_kinds(runner.model)
        self._due: dict[EncodingId, Surroundings] = {}  # being encoded; to become anchors
        self._mixed: dict[EncodingId, tuple[Entry, Mix]] = {}

    def mix_of(self, encoding_id: EncodingId) -> Mix | None:
        """How an encoding on the device was predicted; None for one that was encoded."""
        found = self._mixed.get(encoding_id)
        if found is None:
            return None
        if self._store.get(encoding_id) is not found[0]:
            del self._mixed[encoding_id]
            return None
        return found[1]

    def choose(self, spec: EncodingSpec, specs: Specs, planned: Mapping[EncodingId, Mix] = NOTHING) -> Mix | None:
        """How to predict `spec`, if it may be and its error is known to be small enough.

        The errors of what it reads count, too: of what was predicted, and of what is `planned` to be.
        """
        if not spec.tolerance or not self._serves:
            return None
        around = surroundings(spec, specs)
        if spec.tolerance == TRIAL:
            return self.pool.predict(spec, around, self._usable, leave_out=True)
        twin = make_spec(spec.namespace, spec.tokens, spec.start, spec.view, specs)
        if self._usable(twin.encoding_id):
            return Mix(((Anchor(twin.encoding_id, twin.start, around), 1.0),), 0.0, 0.0)
        spent = sum(mix.error for mix in self._mixes_in(spec, specs, planned))
        return self.pool.choose(spec, around, max(0.0, spec.tolerance - spent), self._usable)

    def make(self, spec: EncodingSpec, mix: Mix) -> Entry:
        """The predicted encoding, pinned once. Its pages can be had; its anchors are pinned, until `settle`."""
        entry = self._store.reserve(spec.encoding_id, spec.num_tokens, spec.namespace)
        entries = [(self._entry(anchor.encoding_id), anchor, weight) for anchor, weight in mix.parts]
        slots = [self._slots(source, spec.num_tokens) for source, _, _ in entries]
        offsets = [spec.start - anchor.start for _, anchor, _ in entries]
        weights = [weight for _, _, weight in entries]
        target = self._slots(entry, spec.num_tokens)
        for first, stop, inv_freq in self._stretches():
            k_pool, v_pool = self._runner.k_pool[first:stop], self._runner.v_pool[first:stop]
            copy_mixed(k_pool, v_pool, slots, offsets, weights, target, inv_freq)
        self._store.publish(entry, spec.encoding_id, spec.num_tokens, spec)
        self._mixed[spec.encoding_id] = entry, mix
        if len(self._mixed) > 2 * len(self._store):
            self._mixed = {i: each for i, each in self._mixed.items() if self._store.get(i) is each[0]}
        if spec.tolerance != TRIAL:
            self._tallying.add("tokens_corrected", spec.num_tokens)
        return entry

    def settle(self) -> None:
        """Waits for what was made: copies between tiers wait for iterations, and this is none."""
        if self._runner.k_pool.is_cuda:
            torch.cuda.current_stream().synchronize()

    def encodes(self, spec: EncodingSpec, specs: Specs) -> None:
        """`spec` is going to be encoded: once it is it will be an anchor, unless what it reads was predicted."""
        if not spec.tolerance or not self._serves or spec.tolerance == TRIAL:
            return
        self._tallying.add("tokens_not_corrected", spec.num_tokens)
        if not self._mixes_in(spec, specs):
            self._due[spec.encoding_id] = surroundings(spec, specs)

    def given_up(self, encoding_id: EncodingId) -> None:
        """It is not going to be encoded after all."""
        self._due.pop(encoding_id, None)

    def published(self, entry: Entry) -> None:
        """An encoding stands on the device."""
        around = self._due.pop(entry.key, None)
        if around is None or entry.spec is None:
            return
        known = [anchor.encoding_id for anchor in self.pool.anchors(entry.spec)]
        others = [encoding_id for encoding_id in known if self._usable(encoding_id)]
        if len(known) == MAX_ANCHORS and len(others) < len(known):  # what the device has lost makes room first
            self.pool.forget(next(encoding_id for encoding_id in known if encoding_id not in others))
        self.pool.add(entry.spec, around, self._gaps(entry, others))

    def forget(self, encoding_ids: tuple[EncodingId, ...]) -> None:
        """Somebody deleted what they were of."""
        for encoding_id in encoding_ids:
            self.pool.forget(encoding_id)

    def _usable(self, encoding_id: EncodingId) -> bool:
        return self._store.get_ready(encoding_id) is not None and self.mix_of(encoding_id) is None

    def _entry(self, encoding_id: EncodingId) -> Entry:
        entry = self._store.get_ready(encoding_id)
        assert entry is not None
        return entry

    def _mixes_in(self, spec: EncodingSpec, specs: Specs, planned: Mapping[EncodingId, Mix] = NOTHING) -> list[Mix]:
        """Of what `spec` reads."""
        ids = [placed.encoding_id for placed in flatten(spec.view, specs)]
        found = (self.mix_of(encoding_id) or planned.get(encoding_id) for encoding_id in ids)
        return [mix for mix in found if mix is not None]

    def _slots(self, entry: Entry, num_tokens: int) -> Tensor:
        pages = torch.from_numpy(entry.page_numbers).long()
        within = torch.arange(self._store.page_size)
        return (pages[:, None] * self._store.page_size + within).view(-1)[:num_tokens].to(self._runner.k_pool.device)

    def _stretches(self) -> list[tuple[int, int, Tensor]]:
        """Layers [begin, end) that rotate alike, and their frequencies."""
        found: list[tuple[int, int, Tensor]] = []
        for layer, number in enumerate(self._kind_of_layer):
            inv_freq = self._kinds[number].inv_freq
            if found and torch.equal(found[-1][2], inv_freq):
                found[-1] = found[-1][0], layer + 1, inv_freq
            else:
                found.append((layer, layer + 1, inv_freq))
        return found

    def _gaps(self, entry: Entry, others: list[EncodingId]) -> dict[EncodingId, float]:
        """Mean squared differences of values, of some layers and tokens."""
        if not others:
            return {}
        v_pool = self._runner.v_pool
        layers = torch.arange(0, len(v_pool), max(1, len(v_pool) // SAMPLED_LAYERS), device=v_pool.device)
        step = max(1, entry.num_tokens // SAMPLED_TOKENS)

        def sampled(each: Entry) -> Tensor:
            return v_pool[layers[:, None], self._slots(each, entry.num_tokens)[None, ::step]].float()

        own = sampled(entry)
        found = torch.stack([(sampled(self._entry(i)) - own).square().mean() for i in others]).tolist()
        return dict(zip(others, found, strict=True))
