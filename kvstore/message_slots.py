"""Slots of a step's views, and what is lost in each by reading a message that is predicted.

KVCOMM (arXiv 2510.12872) knows a message by the slot of the prompt that it fills, and carries what it learnt of one
message over to others of the slot. Of keys and values nothing carries over, wherever it was measured
(docs/fidelity.md); but how far a reader diverges from a prediction does: one that is made of the message as it was
elsewhere, or as it was made. So that is what is kept: errors by slot, of messages that may all be different.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from laban.kvstore.encodings import EncodingId, adapter_of, owner_of
from laban.kvstore.error_bounds import upper_bound

MAX_ERRORS = 16
SLOT_BYTES = 1024

SlotKey = tuple[str, str, int]
"""Whose it is, with the adapter; the kind of its calls; and which of their reads."""


@dataclass(frozen=True, slots=True)
class MessageSlot:
    """A read of a call's: `encoding_id` is to be the message whose home is `home_id`, under another view than there.
    `number` says which of a step's reads it is."""

    encoding_id: EncodingId
    home_id: EncodingId
    number: int

    def key(self, namespace: str, kind: str) -> SlotKey:
        """Of calls of a `kind`, whose encodings are of `namespace`."""
        return owner_of(namespace) + adapter_of(namespace), kind, self.number


class SlotErrors:
    """Of more than `tenant_bytes` a tenant loses what it has not used for longest. Owned by one thread."""

    def __init__(self, tenant_bytes: int) -> None:
        self._most = tenant_bytes // SLOT_BYTES
        self._errors: dict[str, OrderedDict[SlotKey, deque[float]]] = {}  # by tenant, the longest unused first

    @property
    def num_bytes(self) -> int:
        return SLOT_BYTES * sum(map(len, self._errors.values()))

    def knows_enough(self, key: SlotKey) -> bool:
        """Whether another error would only take the place of one."""
        own = self._errors.get(key[0])
        return own is not None and len(own.get(key, ())) == MAX_ERRORS

    def learn(self, key: SlotKey, error: float) -> None:
        """A reader who was given a prediction of a message in the slot diverged by so many nats a token."""
        if not self._most:
            return
        own = self._errors.setdefault(key[0], OrderedDict())
        own.setdefault(key, deque(maxlen=MAX_ERRORS)).append(error)
        own.move_to_end(key)
        if len(own) > self._most:
            own.popitem(last=False)

    def bound(self, key: SlotKey) -> float:
        """What one more errs by at most, 19 times of 20; infinite while too little is known."""
        own = self._errors.get(key[0])
        if own is None or key not in own:
            return math.inf
        own.move_to_end(key)
        return upper_bound(own[key])
