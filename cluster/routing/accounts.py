"""What the ledger keeps of each worker, and of each call that it was sent."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from laban.actors.calls import WorkerLoad
from laban.cluster.routing.rates import Pace
from laban.kvstore.encodings import EncodingId


@dataclass(slots=True, eq=False)
class Account:
    """One life of one worker."""

    worker_id: str
    epoch: str
    number: int
    pace: Pace
    load: WorkerLoad
    queued_tokens: int = 0  # to encode for calls that have no token yet
    link_ns: int = 0  # of loads and fetches for such calls
    num_calls: int = 0  # sent and not ended
    num_started: int = 0  # of these, those that have their first token
    num_ended: int = 0  # since the worker last reported
    num_fetching: int = 0  # encodings that others fetch from it
    queue_ms: int = 0
    turn: int = 0  # its place among the workers by id
    alive: bool = True


@dataclass(slots=True, eq=False)
class Sent:
    """A call at a worker, and what it counts for there."""

    account: Account
    family: str
    output_tokens: int
    queued_tokens: int
    link_ns: int
    alone: bool  # nothing was queued before it, and it brings nothing: its time says how fast the worker encodes
    brings: tuple[EncodingId, ...]
    sources: tuple[Account, ...]
    started: bool = False
    ended: bool = False


class Coming:
    """Who will hold an encoding soon, by how many calls on their way there."""

    __slots__ = ("_packed", "counts")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self._packed = b""

    def add(self, number: int) -> None:
        self.counts[number] = self.counts.get(number, 0) + 1
        self._packed = b""

    def remove(self, number: int) -> None:
        left = self.counts.get(number, 0) - 1
        if left > 0:
            self.counts[number] = left
        else:
            self.drop(number)

    def drop(self, number: int) -> None:
        """The worker of that number will not."""
        self.counts.pop(number, None)
        self._packed = b""

    @property
    def packed(self) -> bytes:
        """How many there are, and their numbers, 32 bits each."""
        if not self._packed:
            self._packed = array("i", [len(self.counts), *self.counts]).tobytes()
        return self._packed


class Making:
    """Tokens that the running calls of each family are expected to make, by the number of their worker."""

    def __init__(self) -> None:
        self._families: dict[str, dict[int, int]] = {}

    def of(self, family: str) -> Mapping[int, int]:
        return self._families.get(family, {})

    def add(self, family: str, number: int, tokens: int) -> None:
        """So many more, or fewer."""
        if not tokens:
            return
        made = self._families.setdefault(family, {})
        made[number] = made.get(number, 0) + tokens
        if not made[number]:
            del made[number]
            if not made:
                del self._families[family]

    def drop(self, number: int) -> None:
        """The worker of that number makes none any more."""
        for family, made in list(self._families.items()):
            made.pop(number, None)
            if not made:
                del self._families[family]
