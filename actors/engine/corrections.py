"""Encodings that may be predicted from others of the same tokens, instead of being encoded.

The pool (`kvstore/anchors.py`) says from which, or that nothing is known to be good enough. Then the message is taken
as it was made, if others in the same slot of the same step are known to lose little so (`kvstore/message_slots.py`);
or it is encoded as any other, and becomes an anchor itself. What was predicted is marked here: it is nobody's anchor,
never leaves the device (to predict it again is one copy), and its error counts against what comes after it in a view.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from laban.actors.calls import Call
from laban.actors.engine.layers import layer_kinds
from laban.actors.engine.runner import AnyRunner
from laban.actors.engine.tallying import Tallying
from laban.actors.errors import LabanError
from laban.kernels.mixed_copy import MixedCopy, Part, Rotation, copy_mixed, slots_of
from laban.kvstore.anchors import MAX_ANCHORS, Anchor, AnchorPool, Mix
from laban.kvstore.encodings import EncodingId, EncodingSpec, flatten, make_spec
from laban.kvstore.store import EncodingStore, Entry
from laban.kvstore.surroundings import NO_SURROUNDINGS, Surroundings, surroundings

log = logging.getLogger(__name__)

TRIAL = math.inf
"""The tolerance of what is predicted to see how wrong it is: any error, and not from the one under its own view."""
AS_MADE = 1.0
"""The distance of a message as it was made: what it saw there counts for nothing."""
SAMPLED_LAYERS, SAMPLED_TOKENS = 4, 32

Specs = dict[EncodingId, EncodingSpec]


class Corrections:
    """Owned by the engine's thread. A worker of several shards predicts nothing: each would decide by its own heads."""

    def __init__(
        self, runner: AnyRunner, store: EncodingStore, tallying: Tallying, pool: AnchorPool | None = None
    ) -> None:
        self.pool = AnchorPool() if pool is None else pool
        self._runner, self._store, self._tallying = runner, store, tallying
        self._serves = runner.group is None
        self._rotations = _rotations(runner)
        self.copying: torch.cuda.Event | None = None
        """When what was made last stands; None once an iteration was launched after it, which ends later."""
        if self._serves:
            self._warm_up()
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

    def choose(self, spec: EncodingSpec, specs: Specs, call: Call) -> Mix | None:
        """How to predict `spec` for `call`, if it may be and its error is known to be small enough.

        The errors of what it reads count, too, where that was predicted.
        """
        if not spec.tolerance or not self._serves:
            return None
        around = surroundings(spec, specs, self.pool.digests)
        if spec.tolerance == TRIAL:
            return self._by_slot(spec, around, call, TRIAL)
        twin = make_spec(spec.namespace, spec.tokens, spec.start, spec.view, specs)
        if self._usable(twin.encoding_id):
            return Mix(((Anchor(twin.encoding_id, twin.start, around), 1.0),), 0.0, 0.0)
        left = max(0.0, spec.tolerance - self.spent(spec, specs))
        found = self.pool.choose(spec, around, left, self._usable), self._by_slot(spec, around, call, left)
        return min((mix for mix in found if mix is not None), key=lambda mix: mix.error, default=None)

    def spent(self, spec: EncodingSpec, specs: Specs) -> float:
        """The errors of what `spec` reads and was predicted, nats a token."""
        mixes = [self.mix_of(placed.encoding_id) for placed in flatten(spec.view, specs)]
        return sum(mix.error for mix in mixes if mix is not None)

    def _by_slot(self, spec: EncodingSpec, around: Surroundings, call: Call, tolerance: float) -> Mix | None:
        """What its own anchors say, or else the message as it was made, if that is known to do in its slot of such
        calls. For a trial, whatever is known."""
        slot = next((slot for slot in call.slots if slot.encoding_id == spec.encoding_id), None)
        key = None if slot is None or not call.kind else slot.key(spec.namespace, call.kind)
        error = TRIAL if key is None else self.pool.slots.bound(key)
        if error > tolerance:
            return None
        mix = self.pool.predict(spec, around, self._usable, leave_out=tolerance == TRIAL)
        if mix is None and key is not None and slot is not None:
            mix = self._as_made(spec, slot.home_id)
        return None if mix is None else replace(mix, error=error, slot=key)

    def _as_made(self, spec: EncodingSpec, home_id: EncodingId) -> Mix | None:
        home = self._store.get_ready(home_id)
        if home is None or home.spec is None or home.spec.tokens != spec.tokens or not self._usable(home_id):
            return None
        return Mix(((Anchor(home_id, home.spec.start, NO_SURROUNDINGS), 1.0),), AS_MADE)

    def make(self, predicted: Sequence[tuple[EncodingSpec, Mix]]) -> list[Entry]:
        """The predicted encodings, each pinned once. Their pages can be had, and their anchors are pinned.

        On a card they are made before the next iteration and not waited for; other streams wait for `copying`.
        Raises LabanError if they cannot be made; then it is as if nobody had asked.
        """
        entries: list[Entry] = []
        try:
            for spec, _ in predicted:
                entries.append(self._store.reserve(spec.encoding_id, spec.num_tokens, spec.namespace))
            self._mix([self._copy(spec, mix, entry) for (spec, mix), entry in zip(predicted, entries, strict=True)])
        except Exception as error:
            log.exception("a prediction failed")
            for entry in entries:
                self._store.discard(entry)
            raise LabanError(f"what it reads could not be predicted: {type(error).__name__}: {error}") from error
        for (spec, mix), entry in zip(predicted, entries, strict=True):
            self._store.publish(entry, spec.encoding_id, spec.num_tokens, spec)
            self._mixed[spec.encoding_id] = entry, mix
            if spec.tolerance != TRIAL:
                self._tallying.add("tokens_corrected", spec.num_tokens)
        if len(self._mixed) > 2 * len(self._store):
            self._mixed = {i: each for i, each in self._mixed.items() if self._store.get(i) is each[0]}
        return entries

    def _mix(self, copies: Sequence[MixedCopy]) -> None:
        pools = self._runner.k_pool, self._runner.v_pool
        try:
            copy_mixed(*pools, copies, self._rotations, self._store.page_size)
        finally:  # a part of it may be under way though another could not be launched
            if self._runner.k_pool.is_cuda:
                self.copying = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self.copying.record()

    def _warm_up(self) -> None:
        """Compiles what mixes, so that no call waits for it: the first slot becomes what it is."""
        page = np.zeros(1, np.int32)
        self._mix([MixedCopy(page, 1, (Part(page, 0, 1.0),))])

    def _copy(self, spec: EncodingSpec, mix: Mix, entry: Entry) -> MixedCopy:
        parts = [
            Part(self._entry(anchor.encoding_id).page_numbers, spec.start - anchor.start, weight)
            for anchor, weight in mix.parts
        ]
        return MixedCopy(entry.page_numbers, spec.num_tokens, tuple(parts))

    def encodes(self, spec: EncodingSpec, specs: Specs) -> None:
        """`spec` is going to be encoded: once it is it will be an anchor, unless what it reads was predicted."""
        if not spec.tolerance or not self._serves or spec.tolerance == TRIAL:
            return
        self._tallying.add("tokens_not_corrected", spec.num_tokens)
        if all(self.mix_of(placed.encoding_id) is None for placed in flatten(spec.view, specs)):
            self._due[spec.encoding_id] = surroundings(spec, specs, self.pool.digests)

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

    def _gaps(self, entry: Entry, others: list[EncodingId]) -> dict[EncodingId, float]:
        """Mean squared differences of values, of some layers and tokens."""
        if not others:
            return {}
        v_pool = self._runner.v_pool
        layers = torch.arange(0, len(v_pool), max(1, len(v_pool) // SAMPLED_LAYERS), device=v_pool.device)
        step = max(1, entry.num_tokens // SAMPLED_TOKENS)

        def sampled(each: Entry) -> NDArray[np.int64]:
            return slots_of(each.page_numbers, entry.num_tokens, self._store.page_size)[::step]

        slots = np.concatenate([sampled(each) for each in (entry, *map(self._entry, others))])
        values = v_pool[layers[:, None], torch.from_numpy(slots).to(v_pool.device)].float()
        # [layers, encodings, tokens, heads, head_dim]
        values = values.reshape(len(layers), 1 + len(others), -1, *values.shape[2:])
        found = (values[:, 1:] - values[:, :1]).square().mean((0, 2, 3, 4)).tolist()
        return dict(zip(others, found, strict=True))


def _rotations(runner: AnyRunner) -> list[Rotation]:
    kinds, kind_of_layer = layer_kinds(runner.model)
    layers: dict[int, list[int]] = {}  # by the first kind that turns so
    for layer, number in enumerate(kind_of_layer):
        alike = next(i for i, kind in enumerate(kinds) if kind.turns_like(kinds[number]))
        layers.setdefault(alike, []).append(layer)
    return [
        Rotation(
            torch.tensor(own, dtype=torch.int32, device=runner.k_pool.device), kinds[i].inv_freq.double().cpu().numpy()
        )
        for i, own in layers.items()
    ]
