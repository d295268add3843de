"""What a worker counts for those who watch it, from its start: spreads of times and sizes, and copies by link.

Knows neither Ray nor torch. Tuples, since they are pickled with reports and that should cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Link = Literal["host", "disk", "cma", "nixl", "object_store"]
"""Where encodings come from: host memory to the device, disk to host memory, and by transport from other workers."""


class Spread(NamedTuple):
    """How values lie: `counts[i]` were at most the i-th bound and more than the one before, the last more than all."""

    counts: tuple[int, ...] = ()
    total: float = 0.0  # the sum of the values


class Copies(NamedTuple):
    """What came over one link."""

    num: int = 0
    num_failed: int = 0  # of these, those that broke off; what was cancelled is neither
    num_bytes: int = 0
    seconds: float = 0.0  # that it took, summed over copies that may have gone side by side
    wait_s: float = 0.0  # before that, for another worker to lend it, or to refuse


class WorkerTallies(NamedTuple):
    """Bounds of the spreads are in `BOUNDS`, by their names here."""

    inter_token_s: Spread = Spread()  # from one token of a call to its next; what came together shares its time
    iteration_s: Spread = Spread()
    batch_calls: Spread = Spread()  # sequences in an iteration: calls, and encodings in the making
    evicted_steps_device: Spread = Spread()  # steps-to-execution of what was evicted, where anybody is known to read it
    evicted_steps_host: Spread = Spread()
    evicted_steps_disk: Spread = Spread()
    tokens_prefilled: int = 0  # computed by iterations
    tokens_decoded: int = 0  # without drafted ones that were refused
    tokens_drafted: int = 0  # guessed from what calls read, and computed along with their last tokens
    tokens_accepted: int = 0  # of these, those that came into a text
    num_saves_failed: int = 0  # encodings that were to be written to disk and could not
    num_policy_failures: int = 0  # keys of a user's own eviction policy that it raised in, or that are none
    tokens_corrected: int = 0  # of reads that may be predicted: those that were
    tokens_not_corrected: int = 0  # and those that were encoded, as nothing was known to be good enough
    num_anchors: int = 0  # now, and what is kept of them beside their keys and values
    anchor_bytes: int = 0
    copies_host: Copies = Copies()
    copies_disk: Copies = Copies()
    copies_cma: Copies = Copies()  # this and the next are from other workers
    copies_nixl: Copies = Copies()
    copies_object_store: Copies = Copies()


_STEPS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
BOUNDS: Mapping[str, tuple[float, ...]] = {
    # A large card decodes in 5 ms, two cores in 100; a long prefill that comes between takes a second.
    "inter_token_s": (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5),
    "iteration_s": (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0),
    "batch_calls": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
    "evicted_steps_device": _STEPS,
    "evicted_steps_host": _STEPS,
    "evicted_steps_disk": _STEPS,
}
