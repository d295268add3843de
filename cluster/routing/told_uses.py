"""What the directory is told of the uses and pins of encodings, so that it can be told all of it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from laban.kvstore.directory_messages import Interest
from laban.kvstore.encodings import EncodingId
from laban.kvstore.interests import OVERDUE_S
from laban.kvstore.uses import Use


class ToldUses:
    """For one shard. Times in seconds on the caller's clock."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._uses: dict[EncodingId, Use] = {}  # dated: `in_s` is a time on the clock
        self._pins: dict[EncodingId, float] = {}  # until then
        self._changed: dict[EncodingId, None] = {}

    def put(
        self, uses: Iterable[tuple[EncodingId, Use | None]], pins: Iterable[tuple[EncodingId, float]], now_s: float
    ) -> None:
        """As in `Advice`: None for no use any more, 0 seconds to let go."""
        for encoding_id, use in uses:
            if use is not None:
                self._uses[encoding_id] = replace(use, in_s=now_s + use.in_s)
                self._changed[encoding_id] = None
            elif self._uses.pop(encoding_id, None) is not None:
                self._changed[encoding_id] = None
        for encoding_id, for_s in pins:
            if for_s > 0:
                self._pins[encoding_id] = now_s + for_s
                self._changed[encoding_id] = None
            elif self._pins.pop(encoding_id, None) is not None:
                self._changed[encoding_id] = None

    def repeat(self) -> None:
        """The shard may know nothing of it."""
        self._changed = dict.fromkeys(self._uses) | dict.fromkeys(self._pins)

    def take(self, now_s: float) -> Interest | None:
        """What has changed since the last call."""
        changed, self._changed = self._changed, {}
        if not changed:
            return None
        uses = tuple((each, self._use(each, now_s)) for each in changed)
        pins = tuple((each, max(self._pins.get(each, now_s) - now_s, 0.0)) for each in changed)
        return Interest(self._source, uses, pins)

    def expire(self, now_s: float) -> None:
        """Forget pins that are over, and uses so long overdue that they will not come: the shards do so, too."""
        for encoding_id in [each for each, until_s in self._pins.items() if until_s <= now_s]:
            del self._pins[encoding_id]
        for encoding_id in [each for each, use in self._uses.items() if use.in_s + OVERDUE_S <= now_s]:
            del self._uses[encoding_id]

    def __len__(self) -> int:
        return len(self._uses.keys() | self._pins.keys())

    def _use(self, encoding_id: EncodingId, now_s: float) -> Use | None:
        use = self._uses.get(encoding_id)
        return None if use is None else replace(use, in_s=max(use.in_s - now_s, 0.0))
