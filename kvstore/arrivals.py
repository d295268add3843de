"""An encoding on its way: how many of its tokens have come, and what became of the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an arrival is, at one moment."""

    num_tokens_done: int
    num_bytes: int
    seconds: float
    ended: bool
    failed: bool  # not all has come, nor will
    pauses: bool  # nor anything else, where it goes, for a while
    stuck_bytes: int = 0  # where it goes, of what was given up and could not be deleted, when it ended


def together(parts: Sequence[Standing]) -> Standing:
    """Of arrivals that each bring a part of the same tokens: a token has come once all of its parts have."""
    return Standing(
        min(part.num_tokens_done for part in parts),
        min(part.num_bytes for part in parts),
        max(part.seconds for part in parts),
        all(part.ended for part in parts),
        any(part.failed for part in parts),
        any(part.pauses for part in parts),
        max(part.stuck_bytes for part in parts),
    )


class Arrival:
    """The tokens of one encoding on their way to a place, from the first on. One thread brings them, any may ask.

    What has come may be used whatever becomes of the rest: `num_tokens_done` never falls.
    """

    def __init__(self, num_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_tokens = num_tokens
        self.link, self.via = "", ""
        """By which transport it was to come from another worker, and by which it does."""
        self._clock = clock
        self._num_tokens_done = 0
        self._num_bytes = 0
        self._began_s: float | None = None
        self._waited_s = 0.0
        self._ended_s: float | None = None
        self._problem: str | None = None
        self._cancelled = False
        self._pauses = False
        self._stuck_bytes = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def num_tokens_done(self) -> int:
        return self._num_tokens_done

    @property
    def num_bytes(self) -> int:
        """That have come so far."""
        return self._num_bytes

    @property
    def seconds(self) -> float:
        """That it has taken so far, without its time in a queue and `waited_s`."""
        if self._began_s is None:
            return 0.0
        return (self._clock() if self._ended_s is None else self._ended_s) - self._began_s

    @property
    def waited_s(self) -> float:
        """For whom it was asked of to answer, before that."""
        return self._waited_s

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def problem(self) -> str | None:
        """Why it ended early; None if it goes on or all has come."""
        return self._problem

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def standing(self) -> Standing:
        with self._lock:
            ended = self._ended.is_set()
            failed = ended and self._problem is not None
            done, num_bytes, stuck_bytes = self._num_tokens_done, self._num_bytes, self._stuck_bytes
            return Standing(done, num_bytes, self.seconds, ended, failed, self._pauses, stuck_bytes)

    def cancel(self) -> None:
        """No more is wanted. It ends soon, unless it has ended."""
        self._cancelled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it has ended; False if that took too long."""
        return self._ended.wait(timeout_s)

    def begin(self) -> None:
        """Its turn has come."""
        self._began_s = self._clock()

    def answered(self) -> None:
        """It was lent, or refused: until now it waited."""
        now_s = self._clock()
        if self._began_s is not None:
            self._waited_s += now_s - self._began_s
        self._began_s = now_s

    def advance(self, num_tokens_done: int, num_bytes: int) -> None:
        """`num_bytes` more have come, and with them the first `num_tokens_done` tokens are there."""
        with self._lock:
            if self._ended.is_set():
                return
            if not self._num_tokens_done <= num_tokens_done <= self.num_tokens:
                raise ValueError(f"{num_tokens_done} of {self.num_tokens} tokens, after {self._num_tokens_done}")
            self._num_tokens_done = num_tokens_done
            self._num_bytes += num_bytes

    def end(self, problem: str | None = None, *, pauses: bool = False, stuck_bytes: int = 0) -> None:
        """No more comes; with `pauses`, of nothing else either for a while. The first end counts. Without a problem,
        all must have come."""
        with self._lock:
            if self._ended.is_set():
                return
            if problem is None and self._num_tokens_done != self.num_tokens:
                raise ValueError(f"{self._num_tokens_done} of {self.num_tokens} tokens came")
            self._problem, self._pauses, self._stuck_bytes = problem, pauses, stuck_bytes
            self._ended_s = self._clock()
            self._ended.set()
