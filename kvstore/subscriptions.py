"""Who wants news of which encodings, and which of these changed since they were last told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from laban.kvstore.directory_messages import Epoch, Watch
from laban.kvstore.encodings import EncodingId


@dataclass(slots=True, eq=False)
class Subscriber:
    """What is kept for one: never more than what it watches, and the lives that ended."""

    name: str
    heard_s: float
    watch_number: int = 0
    number: int = 0  # of the last news it was given
    watched: set[EncodingId] = field(default_factory=set)
    changed: dict[EncodingId, None] = field(default_factory=dict)  # and not told yet, in order
    gone: dict[tuple[str, Epoch], None] = field(default_factory=dict)

    @property
    def has_news(self) -> bool:
        return bool(self.changed or self.gone)


class Subscriptions:
    """Not safe for threads: the shard that owns it calls it. News are what changed, not how: they take no more room
    however long a subscriber does not ask, and the last state is what it gets."""

    def __init__(self) -> None:
        self._subscribers: dict[str, Subscriber] = {}
        self.watchers: dict[EncodingId, tuple[Subscriber, ...]] = {}

    def __len__(self) -> int:
        return len(self._subscribers)

    def get(self, name: str) -> Subscriber | None:
        return self._subscribers.get(name)

    def take(self, watch: Watch, now_s: float) -> bool:
        """False if it does not follow the last one taken: one that is `anew` must come next."""
        subscriber = self._subscribers.get(watch.subscriber)
        if watch.anew:
            if subscriber is None:
                subscriber = self._subscribers[watch.subscriber] = Subscriber(watch.subscriber, now_s)
            elif watch.number <= subscriber.watch_number:
                return True  # repeated, or overtaken by a later one
            self._remove(subscriber, subscriber.watched - set(watch.added))
            subscriber.changed.clear()
        elif subscriber is None or watch.number > subscriber.watch_number + 1:
            return False
        elif watch.number <= subscriber.watch_number:
            return True
        subscriber.watch_number, subscriber.heard_s = watch.number, now_s
        self._remove(subscriber, watch.removed)
        for encoding_id in watch.added:
            if encoding_id not in subscriber.watched:
                subscriber.watched.add(encoding_id)
                self.watchers[encoding_id] = (*self.watchers.get(encoding_id, ()), subscriber)
            subscriber.changed[encoding_id] = None
        return True

    def changed(self, encoding_id: EncodingId) -> None:
        for subscriber in self.watchers.get(encoding_id, ()):
            subscriber.changed[encoding_id] = None

    def ended(self, worker_id: str, epoch: Epoch) -> None:
        for subscriber in self._subscribers.values():
            subscriber.gone[worker_id, epoch] = None

    def repeat(self, subscriber: Subscriber) -> None:
        """It missed news: all that it watches may have changed."""
        subscriber.changed = dict.fromkeys(subscriber.watched)

    def drop_idle(self, before_s: float) -> list[str]:
        """Forget those not heard of since then. Returns their names."""
        idle = [each for each in self._subscribers.values() if each.heard_s < before_s]
        for subscriber in idle:
            self._remove(subscriber, list(subscriber.watched))
            del self._subscribers[subscriber.name]
        return [subscriber.name for subscriber in idle]

    def _remove(self, subscriber: Subscriber, encoding_ids: Iterable[EncodingId]) -> None:
        for encoding_id in encoding_ids:
            if encoding_id not in subscriber.watched:
                continue
            subscriber.watched.discard(encoding_id)
            subscriber.changed.pop(encoding_id, None)
            others = tuple(each for each in self.watchers[encoding_id] if each is not subscriber)
            if others:
                self.watchers[encoding_id] = others
            else:
                del self.watchers[encoding_id]

    def check_integrity(self) -> None:
        """Raises AssertionError if the two indexes differ, or news are kept of what is not watched."""
        watching = {(each, subscriber.name) for each, found in self.watchers.items() for subscriber in found}
        watched = {(each, subscriber.name) for subscriber in self._subscribers.values() for each in subscriber.watched}
        assert watching == watched
        assert all(found for found in self.watchers.values())
        for subscriber in self._subscribers.values():
            assert subscriber.changed.keys() <= subscriber.watched
