"""A message that begins as one that the device has, at the same place under the same view, is encoded from there on."""

from __future__ import annotations

import torch
from torch import Tensor

from laban.actors.engine.runner import AnyRunner
from laban.kvstore.beginnings import Beginnings
from laban.kvstore.encodings import EncodingSpec
from laban.kvstore.store import EncodingStore, Entry

LEAST_ON_CARD = 256
"""Tokens for which it is worth waiting for the iteration under way; few more cost next to nothing to encode."""
LAYERS_AT_ONCE, TOKENS_AT_ONCE = 8, 4096
"""What is copied lies beside the pool for a moment: of so much there is room."""


class SharedBeginnings:
    """Owned by the engine's thread. All shards of a worker find the same, as their stores are alike."""

    def __init__(self, runner: AnyRunner, store: EncodingStore) -> None:
        self._runner, self._store = runner, store
        self._beginnings = Beginnings(lambda entry: store.get_ready(entry.key) is entry)
        self._least = LEAST_ON_CARD if runner.device.type == "cuda" else 1
        self.serves = True  # else every message is computed whole: for who looks at what is computed

    def published(self, entry: Entry) -> None:
        """An encoding, computed and not predicted, stands on the device."""
        if entry.spec is not None:
            self._beginnings.add(entry)

    def copy(self, spec: EncodingSpec, target: Entry) -> int:
        """Copies into `target`, the reserved pages of `spec`, the first tokens that another has; how many those are."""
        # What may be predicted from becomes an anchor, which is to be computed and nothing else.
        found = self._beginnings.find(spec) if self.serves and not spec.tolerance else None
        if found is None or found[1] < self._least:
            return 0
        source, num_tokens = found
        device = self._runner.k_pool.device
        slots = [torch.tensor(entry.slots(num_tokens), device=device) for entry in (target, source)]
        for pool in (self._runner.k_pool, self._runner.v_pool):
            _copy(pool, *slots)
        if device.type == "cuda":  # copies between tiers wait for iterations, and this is none
            torch.cuda.current_stream().synchronize()
        return num_tokens


def _copy(pool: Tensor, target: Tensor, source: Tensor) -> None:
    """pool [num_layers, num_slots, num_kv_heads, head_dim]"""
    for first in range(0, len(pool), LAYERS_AT_ONCE):
        layers = pool[first : first + LAYERS_AT_ONCE]
        for begin in range(0, len(target), TOKENS_AT_ONCE):
            stop = begin + TOKENS_AT_ONCE
            layers[:, target[begin:stop]] = layers[:, source[begin:stop]]
