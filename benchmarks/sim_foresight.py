"""What is known beforehand in the simulator: the book of uses that serves, mistakes in it, and the truth."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sim_flows import Message
from sim_runs import Durations, Run

from laban.kvstore.uses import Use, UseBook

Reads = dict[str, list[tuple[float, tuple[int, int]]]]
"""When each message is read, and by which step of which flow."""

NEVER = 0.2
"""Of the mistakes, those that say that nobody will read it."""
MAX_SEEN = 2000


class Future:
    """When each message is truly read next: as it was in an earlier simulation of the same flows."""

    def __init__(self, reads: Reads) -> None:
        self._reads = {name: sorted(times) for name, times in reads.items()}
        self._at = dict.fromkeys(self._reads, 0)
        self._done: set[tuple[str, tuple[int, int]]] = set()

    def read(self, name: str, by: tuple[int, int]) -> None:
        self._done.add((name, by))

    def next_s(self, name: str) -> float | None:
        reads = self._reads.get(name)
        if reads is None:
            return None
        at = self._at[name]
        while at < len(reads) and (name, reads[at][1]) in self._done:
            at += 1
        self._at[name] = at
        return reads[at][0] if at < len(reads) else None


@dataclass(slots=True, eq=False)
class Told:
    """What has been told of one message so far. `version` counts the times."""

    use: Use | None = None  # the nearest, dated
    version: int = 0
    num_returns: int = 0  # uses announced after there was none any more
    since_s: float = 0.0  # when that was so first

    def hear(self, use: Use | None, now_s: float) -> None:
        if self.version and self.use is None and use is not None:
            self.num_returns += 1
        elif use is None and not self.since_s:
            self.since_s = now_s
        self.use = use
        self.version += 1

    def hear_over(self, now_s: float) -> None:
        """The run that it is of will not read it any more."""
        if self.use is None and not self.since_s:
            self.since_s = now_s
            self.version += 1


NOTHING = Told()


class Foresight:
    """Of all runs. `wrong` is the share of announced uses that are mistaken: another's time, or none at all."""

    def __init__(self, durations: Durations, rng: random.Random, *, wrong: float = 0.0) -> None:
        self._durations = durations
        self._rng = rng
        self._wrong = wrong
        self._book = UseBook()
        self._told: dict[str, Told] = {}
        self._waits: list[float] = []  # some of those announced
        self._mistakes: dict[tuple[int, str, int], float | None] = {}  # by flow, message, and reads of it so far
        self._num_reads: dict[tuple[int, str], int] = {}

    def told_of(self, name: str) -> Told:
        return self._told.get(name, NOTHING)

    def look(self, number: int, run: Run, now_s: float) -> None:
        """Stores take note of what is now expected otherwise than before when they come to weigh it."""
        uses = run.uses(now_s, self._durations)
        if self._wrong:
            told = {name: self._mistaken(number, name, use, now_s) for name, use in uses.items()}
            uses = {name: use for name, use in told.items() if use is not None}
        self._book.put(str(number), uses)
        for name, use in self._book.take_changes().items():
            self._told_of(name).hear(use, now_s)
        for name in run.over():
            self._told_of(name).hear_over(now_s)

    def _told_of(self, name: str) -> Told:
        told = self._told.get(name)
        if told is None:
            told = self._told[name] = Told()
        return told

    def read(self, number: int, messages: Iterable[Message]) -> None:
        if self._wrong:
            for message in messages:
                key = (number, message.name)
                self._num_reads[key] = self._num_reads.get(key, 0) + 1

    def _mistaken(self, number: int, name: str, use: Use, now_s: float) -> Use | None:
        """A mistake is about one read, and stays until that."""
        rng, waits = self._rng, self._waits
        if len(waits) < MAX_SEEN:
            waits.append(use.in_s - now_s)
        else:
            waits[rng.randrange(MAX_SEEN)] = use.in_s - now_s
        key = (number, name, self._num_reads.get((number, name), 0))
        if key not in self._mistakes:
            wrong, never, wait_s = rng.random() < self._wrong, rng.random() < NEVER, rng.choice(waits)
            self._mistakes[key] = -1.0 if not wrong else None if never else now_s + wait_s
        mistake = self._mistakes[key]
        if mistake is None:
            return None
        return use if mistake < 0 else replace(use, in_s=mistake, steps=rng.randrange(8))
