"""Which calls are audited in service, and when there is time for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

SAVED_S = 600.0
"""For so long what was not spent is saved up."""


def is_chosen(workflow_id: str, address: str, share: float) -> bool:
    """Whether an instance is one of the `share` that is audited: whatever is asked, and whoever asks, the same.

    >>> is_chosen("wf-1", "answer", 0.0), is_chosen("wf-1", "answer", 1.0)
    (False, True)
    """
    digest = blake2b(f"{workflow_id}/{address}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@dataclass
class Budget:
    """Seconds of each worker's time: `share` of what passes. What an audit takes beyond that is paid back before the
    next one begins."""

    share: float
    _accounts: dict[str, tuple[float, float]] = field(default_factory=dict)  # worker -> (seconds to spend, as of)

    def left_s(self, worker_id: str, now_s: float) -> float:
        """What may be spent now; below 0 what is to be paid back."""
        left_s, at_s = self._accounts.setdefault(worker_id, (0.0, now_s))
        left_s = min(self.share * SAVED_S, left_s + self.share * (now_s - at_s))
        self._accounts[worker_id] = (left_s, now_s)
        return left_s

    def allows(self, worker_id: str, expected_s: float, now_s: float) -> bool:
        """One that takes longer than can ever be saved up waits until all of that is."""
        return self.left_s(worker_id, now_s) >= min(expected_s, self.share * SAVED_S)

    def spend(self, worker_id: str, spent_s: float, now_s: float) -> None:
        self._accounts[worker_id] = (self.left_s(worker_id, now_s) - spent_s, now_s)
