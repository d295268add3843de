"""Policies of a user's own that have mistakes in them: every so often their key is none."""

from __future__ import annotations

import math
from itertools import count
from typing import Any

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.policy import WorkerView
from laban.kvstore.eviction import Evictable


def raising() -> Any:
    raise ValueError("oops")


MISTAKES = (raising, lambda: None, lambda: (math.nan,), lambda: ("later",), lambda: (None, 1), lambda: 3.0)


class SometimesNoEviction:
    """As `lru`, every third time with a mistake, each in its turn."""

    def __init__(self) -> None:
        self.count = count()

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        turn = next(self.count)
        return MISTAKES[turn // 3 % len(MISTAKES)]() if turn % 3 == 2 else (item.last_use_s, 1)


class SometimesNoRouting:
    """The shortest queue, every seventh time with a mistake, each in its turn."""

    key_names = ("queue_ms",)

    def __init__(self) -> None:
        self.count = count()

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        turn = next(self.count)
        return MISTAKES[turn // 7 % len(MISTAKES)]() if turn % 7 == 6 else (worker.queue_ms,)


class NeverRouting:
    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return None  # type: ignore[return-value]
